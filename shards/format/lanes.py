"""Vectors of pixels in LLVM's instructions, for loops over short rows of many arrays.

A compiler that vectorizes a loop compares the addresses of all arrays before it, to exclude that the loop overwrites
what it has yet to read. For a dozen arrays, this takes longer than a row. Functions written with these vectors read all
of their inputs before they write.
"""

from typing import Any

import numpy as np
from llvmlite import ir

LANES = 16
"""Pixels of a vector: 256 bits of int16. LLVM splits it where registers are shorter."""


def vector_type(bits: int) -> ir.VectorType:
    """Return the type of a vector of integers."""
    return ir.VectorType(ir.IntType(bits), LANES)


def constant(bits: int, value: int | np.integer) -> ir.Constant:
    """Return an integer in every lane."""
    return ir.Constant(vector_type(bits), [int(value)] * LANES)


class Vectors:
    """Vectors of consecutive pixels of arrays, in the body of a numba intrinsic.

    Args:
        context, builder: numba's.
        first: the pixel in the first lane, an integer of LLVM.
    """

    def __init__(self, context: Any, builder: Any, first: Any) -> None:
        self._context, self._builder, self._first = context, builder, first

    def load(self, arrays: Any, kinds: Any, number: int, offset: int = 0) -> Any:
        """Return pixels of one of a tuple of arrays, ``offset`` pixels further.

        Args:
            arrays: the tuple in LLVM.
            kinds: its type in numba.
            number: position of the array.
        """
        pointer = self._pointer(arrays, kinds, number, vector_type(kinds[number].dtype.bitwidth), offset)
        return self._builder.load(pointer, align=1)

    def store(self, arrays: Any, kinds: Any, number: int, value: Any, offset: int = 0) -> None:
        """Write pixels of one of a tuple of arrays; arguments as for `load`."""
        self._builder.store(value, self._pointer(arrays, kinds, number, value.type, offset), align=1)

    def splat(self, numbers: Any, number: int) -> Any:
        """Return one of a tuple of integers in every lane."""
        value = self._builder.extract_value(numbers, number)
        vector = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
        vector = self._builder.insert_element(vector, value, ir.Constant(ir.IntType(32), 0))
        return self._builder.shuffle_vector(vector, vector, constant(32, 0))

    def clip(self, value: Any, limit: int) -> Any:
        """Return int16 values clipped to a magnitude."""
        for comparison, bound in (("<", constant(16, -limit)), (">", constant(16, limit))):
            value = self._builder.select(self._builder.icmp_signed(comparison, value, bound), bound, value)
        return value

    def _pointer(self, arrays: Any, kinds: Any, number: int, kind: ir.VectorType, offset: int) -> Any:
        array = self._context.make_array(kinds[number])(
            self._context, self._builder, self._builder.extract_value(arrays, number)
        )
        index = self._builder.add(self._first, ir.Constant(self._first.type, offset))
        return self._builder.bitcast(self._builder.gep(array.data, [index]), kind.as_pointer())
