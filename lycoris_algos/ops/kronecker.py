"""Kronecker products without forming them.

kron(a, b) of a (p, i) and b (q, j) is p·q × i·j, but seen as a four-dimensional array it is only a
broadcast product a[p, ·, i, ·]·b[·, q, ·, j]. Adding it to a weight therefore needs one pass over the
weight and no temporary.
"""

from __future__ import annotations

from torch import Tensor


def add_kron_rows_(rows: Tensor, start: int, a: Tensor, b: Tensor, multiplier: float) -> None:
    """rows += multiplier · kron(a, b)[start : start + n], in place.

    ``rows`` is (n, i·j) of the (p·q, i·j) matrix, with any strides; ``a`` is (p, i), ``b`` is (q, j).
    """
    q, j = b.shape
    i = a.shape[1]
    done, total = 0, rows.shape[0]
    while done < total:
        block, offset = divmod(start + done, q)
        if offset == 0 and total - done >= q:  # whole blocks: all of b under each row of a
            count = (total - done) // q
            view = rows[done : done + count * q].view(count, q, i, j)
            view.addcmul_(a[block : block + count, None, :, None], b[:, None, :], value=multiplier)
            done += count * q
        else:  # the part of one block that these rows cover
            count = min(q - offset, total - done)
            view = rows[done : done + count].view(count, i, j)
            view.addcmul_(a[block, :, None], b[offset : offset + count, None, :], value=multiplier)
            done += count
