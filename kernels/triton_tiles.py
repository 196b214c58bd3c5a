"""Loads of a row in Triton, and its softmax sums, for triton_row.py.

A softmax is ``exp2(x * sharpness - shift) / total``, in base 2, which GPU instructions compute. The shift, which is
the row's scaled maximum, and the total are never combined into one logsumexp: at logits of 1e4 its rounding would lose
the total. The tempered student and the plain one have the same shift.
"""

# Triton itself determines the types of a kernel's arguments, and of tuples that grow.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment,misc"

import math

import triton
import triton.language as tl

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):  # the kernel has not been tested with older versions
    raise ImportError(f"Triton {triton.__version__} is too old for the fused loss, which needs 3.6 or newer")

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
_NO_SHIFT = tl.constexpr(-3e38)  # below every logit, but finite: -inf - (-inf) would be NaN


@triton.jit
def from_halves(halves, real: tl.constexpr):
    """Return the number that `_halves` of triton_codistillation.py has split."""
    return tl.full((), halves[0], real) + tl.full((), halves[1], real)


@triton.jit
def log2(x, PTX: tl.constexpr):
    """Return the logarithm of `x`, or of a normal number if there is `PTX`."""
    if PTX and x.dtype == tl.float32:  # error <= 2**-22; tl.log2 is a polynomial of about 20 instructions
        asm: tl.constexpr = "lg2.approx.ftz.f32 $0, $1;"
        return tl.inline_asm_elementwise(asm, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def relative(x, sharpness, shift):
    """Return ``x * sharpness - shift``, rounded once: near the maximum it is exact, even for large logits."""
    return tl.fma(x, tl.full((), sharpness, x.dtype), -shift)


@triton.jit
def tile_columns(HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Return the columns of a tile, ``[HEIGHT, WIDTH]``, adjacent along the last axis.

    They count from the start of the tile, so that a thread has one address for all its columns, with constant offsets.
    """
    return tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def tile_mask(count, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FOLD: tl.constexpr):
    """Return a mask of the first `count` columns of a tile. With FOLD = 1 `count` is a multiple of WIDTH."""
    if FOLD == 1:  # in a form that shows the compiler that a vector is inside or outside as a whole
        return tl.broadcast_to((tl.arange(0, HEIGHT) < count // WIDTH)[:, None], (HEIGHT, WIDTH))
    else:
        return tile_columns(HEIGHT, WIDTH) < count


@triton.jit
def _as_real(x, real: tl.constexpr, PTX: tl.constexpr):
    """Convert logits to the dtype of the arithmetic."""
    if PTX and x.dtype == tl.bfloat16:  # two instructions for two numbers, of which the compiler makes three
        asm: tl.constexpr = """{
            .reg .b32 low, high;
            shl.b32 low, $2, 16;
            and.b32 high, $2, 0xffff0000;
            mov.b32 $0, low;
            mov.b32 $1, high;
        }"""
        return tl.inline_asm_elementwise(asm, "=f,=f,r", [x], dtype=tl.float32, is_pure=True, pack=2)
    else:
        return x.to(real)


@triton.jit
def load_tiles(pointers, columns, inside, real: tl.constexpr, EVICTION: tl.constexpr, PTX: tl.constexpr):
    """Load some columns of every row, -inf where not `inside`. All loads come first: their latencies overlap.

    If all columns are inside, pass None: a mask with its -inf costs an instruction a column.
    """
    tiles = ()
    for j in tl.static_range(len(pointers)):
        if inside is None:
            x = tl.load(pointers[j] + columns, eviction_policy=EVICTION)
        else:
            x = tl.load(pointers[j] + columns, mask=inside, other=float("-inf"), eviction_policy=EVICTION)
        tiles += (_as_real(x, real, PTX),)
    return tiles


@triton.jit
def sums_of_row(tiles, sharpness, temperature, TEMPERED: tl.constexpr):
    """Return shift and total of every row, each in one tile, and the total of the first row without a temperature."""
    shifts, totals = (), ()
    for j in tl.static_range(len(tiles)):
        shift = tl.maximum(tl.max(tiles[j]) * sharpness, _NO_SHIFT)
        shifts += (shift,)
        totals += (tl.sum(tl.exp2(relative(tiles[j], sharpness, shift))),)
    plain_total = totals[0]
    if TEMPERED:
        plain_total = tl.sum(tl.exp2(relative(tiles[0], sharpness, shifts[0]) * temperature))
    return shifts, totals, plain_total


@triton.jit
def _add(total, fall, below, FOLD: tl.constexpr):
    """Return the total of each lane after its shift has increased by -`fall` and the columns of `below` are added."""
    return total * tl.exp2(fall) + tl.sum(tl.exp2(below), FOLD)


@triton.jit
def _add_tile(sums, tiles, sharpness, temperature, TEMPERED: tl.constexpr, FOLD: tl.constexpr):
    """Return the sums of each lane, in the form of `sums_of_row`, after a tile of every row is added."""
    old_shifts, old_totals, plain_total = sums
    shifts, totals = (), ()
    for j in tl.static_range(len(tiles)):
        shift = tl.maximum(old_shifts[j], tl.max(tiles[j], FOLD) * sharpness)
        fall = old_shifts[j] - shift
        below = relative(tiles[j], sharpness, tl.expand_dims(shift, FOLD))
        shifts += (shift,)
        totals += (_add(old_totals[j], fall, below, FOLD),)
        if TEMPERED and j == 0:
            plain_total = _add(plain_total, fall * temperature, below * temperature, FOLD)
    return shifts, totals, plain_total


@triton.jit
def sums_of_tiles(
    pointers,
    body,
    sharpness,
    temperature,
    TEMPERED: tl.constexpr,
    real: tl.constexpr,
    STAGES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    FOLD: tl.constexpr,
    PTX: tl.constexpr,
):
    """Return the results of `sums_of_row` from a pass over the tiles of the bodies."""
    LANES: tl.constexpr = HEIGHT if FOLD == 1 else WIDTH
    columns = tile_columns(HEIGHT, WIDTH)
    shifts, totals = (), ()
    for _ in tl.static_range(len(pointers)):
        shifts += (tl.full((LANES,), _NO_SHIFT, real),)
        totals += (tl.zeros((LANES,), real),)
    sums = (shifts, totals, tl.zeros((LANES,), real))
    end = body // (HEIGHT * WIDTH) * (HEIGHT * WIDTH)  # of the complete tiles
    for start in tl.range(0, end, HEIGHT * WIDTH, num_stages=STAGES):
        tiles = load_tiles(pointers, start + columns, None, real, "evict_last", PTX)
        sums = _add_tile(sums, tiles, sharpness, temperature, TEMPERED, FOLD)
    if end < body:
        inside = tile_mask(body - end, HEIGHT, WIDTH, FOLD)
        tiles = load_tiles(pointers, end + columns, inside, real, "evict_last", PTX)
        sums = _add_tile(sums, tiles, sharpness, temperature, TEMPERED, FOLD)

    shifts, totals, plain_total = sums
    row_shifts, row_totals = (), ()
    for j in tl.static_range(len(pointers)):
        shift = tl.max(shifts[j], 0)
        row_shifts += (shift,)
        row_totals += (tl.sum(totals[j] * tl.exp2(shifts[j] - shift), 0),)
    if TEMPERED:
        plain_total = tl.sum(plain_total * tl.exp2((shifts[0] - row_shifts[0]) * temperature), 0)
    else:
        plain_total = row_totals[0]
    return row_shifts, row_totals, plain_total


@triton.jit
def add_edge(body, edge, temperature):
    """Return the results of `sums_of_row` for body and edge together."""
    shifts, totals = (), ()
    for j in tl.static_range(len(body[0])):
        shift = tl.maximum(body[0][j], edge[0][j])
        shifts += (shift,)
        totals += (body[1][j] * tl.exp2(body[0][j] - shift) + edge[1][j] * tl.exp2(edge[0][j] - shift),)
    fall_of_body, fall_of_edge = body[0][0] - shifts[0], edge[0][0] - shifts[0]
    plain_total = body[2] * tl.exp2(fall_of_body * temperature) + edge[2] * tl.exp2(fall_of_edge * temperature)
    return shifts, totals, plain_total


@triton.jit
def shift_and_total(lse, real: tl.constexpr):
    """Load the float64 logsumexp at `lse` as a shift in base 2 and a total."""
    log = tl.load(lse) * LOG2E
    shift = log.to(real)
    return shift, tl.exp2((log - shift).to(real))


@triton.jit
def body_address(matrix, row, stride, first, ALIGNED: tl.constexpr, WIDTH: tl.constexpr):
    """Return the address of the body of a row, which begins at column `first`."""
    vector: tl.constexpr = WIDTH * matrix.dtype.element_ty.primitive_bitwidth // 8
    # If the compiler sees one alignment for all rows, all tiles get the same layout.
    return tl.multiple_of(matrix + (row * stride + first), vector if ALIGNED else 1)
