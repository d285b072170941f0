# pyright: reportMissingImports=false
"""Two operations that numba has no name for: a mask of which of 64 neighbours exceed a level, and its lowest set bit."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 64


@intrinsic
def exceed(_, bits, place, level):
    """Bit i of the result says whether bits[place + i] > level, for i < 64; bits is a contiguous int32 array."""

    def code(context, builder, signature, arguments):
        array, at, bound = arguments
        kind = ir.VectorType(ir.IntType(32), LANES)
        data = context.make_array(signature.args[0])(context, builder, array).data
        start = builder.bitcast(builder.gep(data, [at]), kind.as_pointer())
        values = builder.load(start, align=4, typ=kind)
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), bound, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        splat = builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)
        return builder.bitcast(builder.icmp_signed(">", values, splat), ir.IntType(LANES))

    return types.int64(bits, types.int64, types.int32), code


@intrinsic
def lowest(_, mask):
    """Place of the lowest set bit of a mask that is not 0."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), code


@intrinsic
def exceed_each(_, values, place, levels):
    """Bit i of the result says whether values[place + i] > levels[place + i], for i < 64; contiguous float32 arrays."""

    def code(context, builder, signature, arguments):
        kind = ir.VectorType(ir.FloatType(), LANES)
        sides = []
        for at in (0, 2):
            data = context.make_array(signature.args[at])(context, builder, arguments[at]).data
            start = builder.bitcast(builder.gep(data, [arguments[1]]), kind.as_pointer())
            sides.append(builder.load(start, align=4, typ=kind))
        return builder.bitcast(builder.fcmp_ordered(">", *sides), ir.IntType(LANES))

    return types.int64(values, types.int64, levels), code
