# pyright: reportMissingImports=false
"""Operations on 64 neighbours that numba has no name for: which exceed a level, the lowest of those, sums of rows."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
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


@intrinsic
def add_rows(_, out, rows, at, index, weight, scale, first, last):
    """out[at + i] += Σ_t scale · weight[t] · rows[index[t], at + i] over first ≤ t < last, for i < 64, kept in registers.

    out, weight, scale: float32; index: int32; rows: contiguous float32 with two axes.
    """

    def code(context, builder, signature, arguments):
        out, rows, index, weight = (
            context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 1, 3, 4)
        )
        at, scale, first, last = (arguments[i] for i in (2, 5, 6, 7))
        kind = ir.VectorType(ir.FloatType(), LANES)
        width = cgutils.unpack_tuple(builder, rows.shape)[1]
        target = builder.bitcast(builder.gep(out.data, [at]), kind.as_pointer())
        total = cgutils.alloca_once(builder, kind)
        builder.store(builder.load(target, align=4, typ=kind), total)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        with cgutils.for_range_slice(builder, first, last, first.type(1), inc=True) as (t, _):
            row = builder.sext(builder.load(builder.gep(index.data, [t])), width.type)
            place = builder.add(builder.mul(row, width), at)
            values = builder.load(
                builder.bitcast(builder.gep(rows.data, [place]), kind.as_pointer()), align=4, typ=kind
            )
            factor = builder.fmul(builder.load(builder.gep(weight.data, [t])), scale)
            one = builder.insert_element(ir.Constant(kind, ir.Undefined), factor, ir.IntType(32)(0))
            splat = builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)
            product = builder.fmul(values, splat, flags=("contract",))
            builder.store(builder.fadd(builder.load(total, typ=kind), product, flags=("contract",)), total)
        builder.store(builder.load(total, typ=kind), target, align=4)
        return context.get_dummy_value()

    return types.none(out, rows, types.int64, index, weight, types.float32, types.int64, types.int64), code
