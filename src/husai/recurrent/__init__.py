"""The recurrent tier: networks that keep a running sum, and the walks they are read on. (docs/method.md §Recurrent networks)"""
