"""One row of the loss in Triton; triton_codistillation.py launches it.

A softmax is ``exp2(x * sharpness - shift) / total``, in base 2, which GPU instructions compute. The shift, which is
the row's scaled maximum, and the total are never combined into one logsumexp: at logits of 1e4 its rounding would lose
the total. The tempered student and the plain one have the same shift.

Offsets are 64-bit. An ignored row is neither read nor computed.
"""

# Triton itself determines the types of a kernel's arguments, and of tuples that grow.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment,misc"

import math

import triton
import triton.language as tl

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):  # the kernel has not been tested with older versions
    raise ImportError(f"Triton {triton.__version__} is too old for the fused loss, which needs 3.6 or newer")

_LOG2E = tl.constexpr(math.log2(math.e))
_LN2 = tl.constexpr(math.log(2))
_NO_SHIFT = tl.constexpr(-3e38)  # below every logit, but finite: -inf - (-inf) would be NaN


@triton.jit
def _number(halves, real: tl.constexpr):
    """Return the number that `_halves` has split."""
    return tl.full((), halves[0], real) + tl.full((), halves[1], real)


@triton.jit
def _log2(x, APPROXIMATE: tl.constexpr):
    if APPROXIMATE:  # error <= 2**-22; tl.log2 is a polynomial of about 20 instructions
        return tl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(x)


@triton.jit
def _below(x, sharpness, shift):
    """Return ``x * sharpness - shift``, rounded once: near the maximum it is exact, even for large logits."""
    return tl.fma(x, tl.full((), sharpness, x.dtype), -shift)


@triton.jit
def _columns(HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Return the columns of a tile, ``[HEIGHT, WIDTH]``, adjacent along the last axis.

    They count from the start of the tile, so that a thread has one address for all its columns, with constant offsets.
    """
    return tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _load(pointers, start, columns, V, real: tl.constexpr, EVICTION: tl.constexpr):
    """Load the tile at `start` of every row, -inf beyond its end. All loads come first: their latencies overlap."""
    tiles = ()
    for j in tl.static_range(len(pointers)):
        inside = columns < V - start
        x = tl.load(pointers[j] + start + columns, mask=inside, other=float("-inf"), eviction_policy=EVICTION)
        tiles += (x.to(real),)
    return tiles


@triton.jit
def _sums_of_row(tiles, sharpness, temperature, TEMPERED: tl.constexpr):
    """Return shift and total of every row, each in one tile, and the total of the first row without a temperature."""
    shifts, totals = (), ()
    for j in tl.static_range(len(tiles)):
        shift = tl.maximum(tl.max(tiles[j]) * sharpness, _NO_SHIFT)
        shifts += (shift,)
        totals += (tl.sum(tl.exp2(_below(tiles[j], sharpness, shift))),)
    plain_total = totals[0]
    if TEMPERED:
        plain_total = tl.sum(tl.exp2(_below(tiles[0], sharpness, shifts[0]) * temperature))
    return shifts, totals, plain_total


@triton.jit
def _add(total, fall, below, FOLD: tl.constexpr):
    """Return the total of each lane after its shift has increased by -`fall` and the columns of `below` are added."""
    return total * tl.exp2(fall) + tl.sum(tl.exp2(below), FOLD)


@triton.jit
def _sums_of_tiles(
    pointers,
    V,
    sharpness,
    temperature,
    TEMPERED: tl.constexpr,
    real: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    FOLD: tl.constexpr,
):
    """Return the results of `_sums_of_row` from a pass over the tiles of the rows."""
    LANES: tl.constexpr = HEIGHT if FOLD == 1 else WIDTH
    shifts, totals = (), ()
    for _ in tl.static_range(len(pointers)):
        shifts += (tl.full((LANES,), _NO_SHIFT, real),)
        totals += (tl.zeros((LANES,), real),)
    plain_total = tl.zeros((LANES,), real)
    columns = _columns(HEIGHT, WIDTH)
    for start in range(0, V, HEIGHT * WIDTH):
        tiles = _load(pointers, start, columns, V, real, "evict_last")
        new_shifts, new_totals = (), ()
        for j in tl.static_range(len(pointers)):
            shift = tl.maximum(shifts[j], tl.max(tiles[j], FOLD) * sharpness)
            fall = shifts[j] - shift
            below = _below(tiles[j], sharpness, tl.expand_dims(shift, FOLD))
            new_shifts += (shift,)
            new_totals += (_add(totals[j], fall, below, FOLD),)
            if TEMPERED and j == 0:
                plain_total = _add(plain_total, fall * temperature, below * temperature, FOLD)
        shifts, totals = new_shifts, new_totals

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
def _shift_and_log(lse, real: tl.constexpr):
    """Load the float64 logsumexp at `lse` as a shift and the logarithm of a total, both in base 2."""
    log = tl.load(lse) * _LOG2E
    shift = log.to(real)
    return shift, (log - shift).to(real)


@triton.jit
def _fill(row, value, V, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    columns = _columns(HEIGHT, WIDTH)
    for start in range(0, V, HEIGHT * WIDTH):
        tl.store(row + start + columns, tl.full((HEIGHT, WIDTH), value, tl.float32), mask=columns < V - start)


@triton.jit
def _row(matrix, row, stride, ALIGNED: tl.constexpr):
    """Return the address of a row. If the compiler sees one alignment for all rows, all tiles get the same layout."""
    return tl.multiple_of(matrix + row * stride, 16 if ALIGNED else 1)


@triton.jit(do_not_specialize=["ignore_index"])
def kernel(
    student_and_teachers,  # a tuple of 1 + N, each [rows, V]
    strides,  # a tuple of 1 + N
    target,  # [rows]
    mixture,  # a tuple of N pairs of `_halves`
    teacher_lse,  # [N, rows] or None
    class_weight,  # [all_classes] or None
    class_weight_sum,  # [], or None if it is not needed
    scales,  # [3]
    numbers,  # `_halves` of temperature, 1 / temperature, label_smoothing
    ignore_index,
    losses,  # [rows]
    parts,  # [3, rows]
    gradient,  # [rows, V] or None
    gradient_stride,
    V,  # columns
    first_class,  # 0, except in a shard
    all_classes,  # V, except in a shard
    shard_lse,  # [2 + N, rows], or None
    IS_MERGED: tl.constexpr,  # shard_lse is over all classes
    TEMPERED: tl.constexpr,  # temperature != 1
    SMOOTHED: tl.constexpr,  # label_smoothing > 0
    APPROXIMATE: tl.constexpr,
    ALIGNED: tl.constexpr,  # every row's address is a multiple of 16
    WHOLE: tl.constexpr,  # one tile holds the row
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    FOLD: tl.constexpr,
):
    """Compute the outputs of one row as `Rows` defines them; `triton_codistillation.run` passes the arguments."""
    real: tl.constexpr = losses.dtype.element_ty
    N: tl.constexpr = len(mixture)
    LANES: tl.constexpr = HEIGHT if FOLD == 1 else WIDTH
    rows = tl.num_programs(0).to(tl.int64)
    row = tl.program_id(0).to(tl.int64)
    if gradient is not None:
        gradient = _row(gradient, row, gradient_stride, ALIGNED)

    label = tl.load(target + row)
    ignored = label == ignore_index
    if ignored or label < 0 or label >= all_classes:
        value = tl.where(ignored, 0.0, float("nan"))
        if shard_lse is not None and not IS_MERGED:
            for i in tl.static_range(N + 2):
                tl.store(shard_lse + i * rows + row, value)
        else:
            tl.store(losses + row, value)
            for i in tl.static_range(3):
                tl.store(parts + i * rows + row, value)
            if gradient is not None:
                _fill(gradient, value, V, HEIGHT, WIDTH)
        return
    column_of_label = (label - first_class).to(tl.int32)
    has_label = (column_of_label >= 0) & (column_of_label < V)

    temperature = _number(numbers[0], real)
    inverse_temperature = _number(numbers[1], real)
    sharpness = inverse_temperature * _LOG2E
    label_smoothing = _number(numbers[2], real)

    pointers = ()
    for j in tl.static_range(N + 1):
        pointers += (_row(student_and_teachers[j], row, strides[j], ALIGNED),)
    # Loaded here because the gradient may overwrite it.
    z_label = tl.load(pointers[0] + column_of_label, mask=has_label, other=0).to(real)
    columns = _columns(HEIGHT, WIDTH)
    if WHOLE:
        tiles = _load(pointers, 0, columns, V, real, "evict_first")
    if IS_MERGED:
        lse = tl.load(shard_lse + row).to(real)
        z_shift, q_log = _shift_and_log(shard_lse + rows + row, real)
        p_log = (tl.load(shard_lse + row) * _LOG2E - z_shift.to(tl.float64) * temperature).to(real)
    else:
        if WHOLE:
            summed = tiles if teacher_lse is None else (tiles[0],)
            shifts, totals, plain_total = _sums_of_row(summed, sharpness, temperature, TEMPERED)
        else:
            summed = pointers if teacher_lse is None else (pointers[0],)
            shifts, totals, plain_total = _sums_of_tiles(
                summed, V, sharpness, temperature, TEMPERED, real, HEIGHT, WIDTH, FOLD
            )
        z_shift = shifts[0]
        q_log = tl.log2(totals[0])
        p_log = tl.log2(plain_total)
        lse = (z_shift * temperature + p_log) * _LN2
    if shard_lse is not None and not IS_MERGED:
        tl.store(shard_lse + row, (z_shift.to(tl.float64) * temperature + p_log) * _LN2)
        for j in tl.static_range(N + 1):
            tl.store(shard_lse + (j + 1) * rows + row, (shifts[j].to(tl.float64) + tl.log2(totals[j])) * _LN2)
        return
    t_shifts, t_factors = (), ()
    for j in tl.static_range(N):
        share = _number(mixture[j], real)
        if IS_MERGED:
            shift, log = _shift_and_log(shard_lse + (2 + j) * rows + row, real)
            t_shifts += (shift,)
            t_factors += (share * tl.exp2(-log),)
        elif teacher_lse is None:
            t_shifts += (shifts[j + 1],)
            t_factors += (share / totals[j + 1],)
        else:
            t_shifts += (tl.load(teacher_lse + j * rows + row),)
            t_factors += (share,)

    tl.store(parts + 2 * rows + row, lse)
    on_label = 1 - label_smoothing  # target of the label; all classes have `even` in addition
    if class_weight is not None:
        on_label *= tl.load(class_weight + label)
    distance = p_log - _below(z_label, sharpness, z_shift) * temperature
    label_entropy = tl.where(has_label & (on_label > 0), on_label * distance, 0.0)
    even = label_smoothing / all_classes
    target_sum = on_label
    if SMOOTHED:
        target_sum += even * (all_classes if class_weight is None else tl.load(class_weight_sum))
    ce_scale = tl.load(scales)
    divergence_scale = tl.load(scales + 1)
    lse_scale = tl.load(scales + 2)
    p_scale = ce_scale * target_sum + 2 * lse_scale * lse
    label_scale = ce_scale * on_label
    q_scale = divergence_scale * temperature

    smooth_lanes = tl.zeros((LANES,), real)
    divergence_lanes = tl.zeros((LANES,), real)
    if gradient is not None or N > 0 or SMOOTHED:
        count = 1 if WHOLE else tl.cdiv(V, HEIGHT * WIDTH)
        for i in range(0, count):
            start = (count - 1 - i) * (HEIGHT * WIDTH)
            if not WHOLE:
                tiles = _load(pointers, start, columns, V, real, "evict_first")
            inside = columns < V - start
            below = _below(tiles[0], sharpness, z_shift)
            log_q = below - q_log
            log_p = below * temperature - p_log if TEMPERED else log_q
            grad = p_scale * tl.exp2(log_p) - tl.where(columns == column_of_label - start, label_scale, 0.0)
            if SMOOTHED:
                if class_weight is None:
                    smooth = tl.where(inside, even, 0.0)
                else:
                    weights = class_weight + first_class + start + columns
                    smooth = even * tl.load(weights, mask=inside, other=0.0)
                smooth_lanes -= tl.sum(tl.where(smooth > 0, smooth * log_p, 0.0), FOLD)
                grad -= ce_scale * smooth
            if N > 0:
                m = tl.zeros((HEIGHT, WIDTH), real)
                for j in tl.static_range(N):
                    if teacher_lse is None:
                        exponent = _below(tiles[j + 1], sharpness, t_shifts[j])
                    else:  # in base e: converting a large logsumexp would round it once more
                        exponent = _below(tiles[j + 1], inverse_temperature, t_shifts[j]) * _LOG2E
                    m += t_factors[j] * tl.exp2(exponent)
                divergence = m * (_log2(m, APPROXIMATE) - log_q)
                divergence_lanes += tl.sum(tl.where(m > 0, divergence, 0.0), FOLD)
                grad += q_scale * (tl.exp2(log_q) - m)
            if gradient is not None:
                tl.store(gradient + start + columns, grad, mask=inside)

    cross_entropy = (label_entropy + tl.sum(smooth_lanes, 0)) * _LN2
    divergence = tl.sum(divergence_lanes, 0) * _LN2
    if not IS_MERGED:
        divergence = tl.where(divergence < 0, 0.0, divergence)  # only rounding makes it negative; NaN stays NaN
    distillation = divergence_scale * temperature * temperature * divergence
    tl.store(losses + row, ce_scale * cross_entropy + distillation + lse_scale * lse * lse)
    tl.store(parts + row, cross_entropy)
    tl.store(parts + rows + row, divergence)
