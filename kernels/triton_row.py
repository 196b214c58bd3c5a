"""One row of the loss in Triton; triton_codistillation.py launches it.

The body of a row is what a thread loads and stores in vectors of 16 bytes. If the row begins or ends between two such
vectors, its first and last columns are the edge. Columns count from the start of the body; those of the edge before it
are negative.

Offsets are 64-bit. An ignored row is neither read nor computed.
"""

# Triton itself determines the types of a kernel's arguments, and of tuples that grow.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment,misc"

import triton
import triton.language as tl

from hpcdistill.kernels.triton_tiles import (
    LN2,
    LOG2E,
    add_edge,
    body_address,
    from_halves,
    load_tiles,
    log2,
    relative,
    shift_and_total,
    sums_of_row,
    sums_of_tiles,
    tile_columns,
    tile_mask,
)

_SMALLEST = tl.constexpr(2.0**-126)  # smallest normal float32
_POINTERS = (
    "student_and_teachers",
    "target",
    "teacher_lse",
    "class_weight",
    "class_weight_sum",
    "scales",
    "losses",
    "parts",
    "gradient",
    "shard_lse",
)


@triton.jit
def _fill(row, value, V, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    columns = tile_columns(HEIGHT, WIDTH)
    for start in range(0, V, HEIGHT * WIDTH):
        tl.store(row + start + columns, tl.full((HEIGHT, WIDTH), value, tl.float32), mask=columns < V - start)


@triton.jit
def _smooth_target(class_weight, columns, inside, even):
    """Return the smoothed part of the target of some columns."""
    if class_weight is None:
        return even if inside is None else tl.where(inside, even, 0.0)
    elif inside is None:
        return even * tl.load(class_weight + columns)
    else:
        return even * tl.load(class_weight + columns, mask=inside, other=0.0)


@triton.jit
def _mean_of_teachers(tiles, numbers, shifts, factors, LSE_IS_GIVEN: tl.constexpr, PTX: tl.constexpr):
    """Return the mean of the teachers' probabilities, in units of `unit` / `z_total` of `kernel`, and its logarithm.

    The logarithm is that of the mean times `z_total`.
    """
    sharpness, _, inverse_temperature = numbers
    N: tl.constexpr = len(tiles) - 1
    mean = tl.zeros_like(tiles[0])
    for j in tl.static_range(N):
        if LSE_IS_GIVEN:  # in base e: converting a large logsumexp would round it once more
            exponent = relative(tiles[j + 1], inverse_temperature, shifts[j + 1]) * LOG2E
        else:
            exponent = relative(tiles[j + 1], sharpness, shifts[j + 1])
        if N > 1:
            mean += factors[j] * tl.exp2(exponent)
    if N > 1:
        return mean, log2(mean, PTX)
    else:
        return tl.exp2(exponent), exponent + tl.log2(factors[0])


@triton.jit
def _differentiate(
    tiles,
    columns,
    inside,  # mask of the columns; None if all of them are in the row
    label,  # column of the label
    has_label,  # False if the label is certainly elsewhere
    gradient,  # or None
    class_weight,
    sums,  # of the terms of the divergence and of the smoothed cross-entropy, over the axis FOLD of the tiles
    numbers,  # sharpness, temperature, 1 / temperature
    shifts,  # of the student and the teachers
    factors,  # of the exponentials of plain student, tempered student, and mean; tuple of the teachers' in the mean
    target,  # logarithm of the plain total; gradient of the label; `even`; scale of the cross-entropy
    FOLD: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """Store the gradient of some columns, and return `sums` with their terms."""
    SMOOTHED: tl.constexpr = FLAGS[0]
    TEMPERED: tl.constexpr = FLAGS[1]
    PTX: tl.constexpr = FLAGS[3]
    N: tl.constexpr = len(tiles) - 1
    sharpness, temperature, _ = numbers
    divergence, smoothing = sums
    p_log, label_scale, even, ce_scale = target
    below = relative(tiles[0], sharpness, shifts[0])
    student = tl.exp2(below)
    if TEMPERED:
        grad = factors[0] * tl.exp2(below * temperature) + factors[1] * student
    else:
        grad = (factors[0] + factors[1]) * student
    if N > 0:
        mean, log_of_mean = _mean_of_teachers(tiles, numbers, shifts, factors[3], FLAGS[2], PTX)
        # A class without probability adds 0, even if the student rules it out.
        counts = mean >= _SMALLEST if N > 1 and PTX and mean.dtype == tl.float32 else mean > 0
        divergence += tl.sum(tl.where(counts, mean * (log_of_mean - below), 0.0), FOLD)
        grad -= factors[2] * mean
    if SMOOTHED:
        smooth = _smooth_target(class_weight, columns, inside, even)
        smoothing += tl.sum(tl.where(smooth > 0, smooth * (p_log - below * temperature), 0.0), FOLD)
        grad -= ce_scale * smooth
    if gradient is not None:
        if has_label:
            grad -= tl.where(columns == label, label_scale, 0.0)
        tl.store(gradient + columns, grad, mask=inside)
    return divergence, smoothing


@triton.jit(do_not_specialize=["ignore_index", "lead"], do_not_specialize_on_alignment=_POINTERS)
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
    lead,  # columns of row 0 before its body
    V,  # columns
    first_class,  # 0, except in a shard
    all_classes,  # V, except in a shard
    shard_lse,  # [2 + N, rows], or None
    IS_MERGED: tl.constexpr,  # shard_lse is over all classes
    TEMPERED: tl.constexpr,  # temperature != 1
    SMOOTHED: tl.constexpr,  # label_smoothing > 0
    PTX: tl.constexpr,
    ALIGNED: tl.constexpr,  # the body's vectors are aligned in all matrices
    EDGES: tl.constexpr,  # rows have columns before or after their body
    WHOLE: tl.constexpr,  # one tile holds the body
    STAGES: tl.constexpr,  # with more than 1, tiles are loaded ahead into shared memory
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    FOLD: tl.constexpr,
):
    """Compute the outputs of one row as `Rows` defines them; `triton_codistillation.run` passes the arguments."""
    real: tl.constexpr = losses.dtype.element_ty
    N: tl.constexpr = len(mixture)
    rows = tl.num_programs(0).to(tl.int64)
    row = tl.program_id(0).to(tl.int64)

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
                _fill(gradient + row * gradient_stride, value, V, HEIGHT, WIDTH)
        return

    temperature = from_halves(numbers[0], real)
    inverse_temperature = from_halves(numbers[1], real)
    sharpness = inverse_temperature * LOG2E
    label_smoothing = from_halves(numbers[2], real)
    numbers_of_row = (sharpness, temperature, inverse_temperature)

    first = 0
    body = V
    if EDGES:
        first = tl.minimum((lead - row * strides[0]) & (WIDTH - 1), V).to(tl.int32)
        body = (V - first) // WIDTH * WIDTH
    pointers = ()
    for j in tl.static_range(N + 1):
        pointers += (body_address(student_and_teachers[j], row, strides[j], first, ALIGNED, WIDTH),)
    if gradient is not None:
        gradient = body_address(gradient, row, gradient_stride, first, ALIGNED, WIDTH)
    column_of_label = (label - first_class - first).to(tl.int32)
    has_label = (column_of_label >= -first) & (column_of_label < V - first)
    # Loaded here because the gradient may overwrite it.
    z_label = tl.load(pointers[0] + column_of_label, mask=has_label, other=0).to(real)

    columns = tile_columns(HEIGHT, WIDTH)
    end = 0 if WHOLE else body // (HEIGHT * WIDTH) * (HEIGHT * WIDTH)  # of the complete tiles
    inside = tile_mask(body - end, HEIGHT, WIDTH, FOLD)
    if WHOLE:
        tiles = load_tiles(pointers, columns, inside, real, "evict_first", PTX)
    if EDGES:
        edge = tl.arange(0, 2 * WIDTH) - WIDTH
        edge = tl.where(edge < 0, edge, body + edge)
        inside_edge = (edge >= -first) & (edge < V - first)

    t_shifts, t_totals = (), ()
    if IS_MERGED:
        lse = tl.load(shard_lse + row).to(real)
        z_shift, z_total = shift_and_total(shard_lse + rows + row, real)
        p_log = (tl.load(shard_lse + row) * LOG2E - z_shift.to(tl.float64) * temperature).to(real)
        plain_total = tl.exp2(p_log)
        for j in tl.static_range(N):
            shift, total = shift_and_total(shard_lse + (2 + j) * rows + row, real)
            t_shifts += (shift,)
            t_totals += (total,)
    else:
        summed: tl.constexpr = N + 1 if teacher_lse is None else 1
        if WHOLE:
            sums = sums_of_row(tiles[:summed], sharpness, temperature, TEMPERED)
        else:
            sums = sums_of_tiles(
                pointers[:summed], body, sharpness, temperature, TEMPERED, real, STAGES, HEIGHT, WIDTH, FOLD, PTX
            )
        if EDGES:
            edge_tiles = load_tiles(pointers[:summed], edge, inside_edge, real, "", PTX)
            sums = add_edge(sums, sums_of_row(edge_tiles, sharpness, temperature, TEMPERED), temperature)
        shifts, totals, plain_total = sums
        z_shift = shifts[0]
        z_total = totals[0]
        p_log = tl.log2(plain_total)
        lse = (z_shift * temperature + p_log) * LN2
        for j in tl.static_range(N):
            if teacher_lse is None:
                t_shifts += (shifts[j + 1],)
                t_totals += (totals[j + 1],)
            else:
                t_shifts += (tl.load(teacher_lse + j * rows + row),)
                t_totals += (tl.full((), 1, real),)
    if shard_lse is not None and not IS_MERGED:
        tl.store(shard_lse + row, (z_shift.to(tl.float64) * temperature + p_log) * LN2)
        for j in tl.static_range(N + 1):
            tl.store(shard_lse + (j + 1) * rows + row, (shifts[j].to(tl.float64) + tl.log2(totals[j])) * LN2)
        return
    tl.store(parts + 2 * rows + row, lse)

    on_label = 1 - label_smoothing  # target of the label; all classes have `even` in addition
    if class_weight is not None:
        on_label *= tl.load(class_weight + label)
        class_weight += first_class + first
    distance = p_log - relative(z_label, sharpness, z_shift) * temperature
    label_entropy = tl.where(has_label & (on_label > 0), on_label * distance, 0.0)
    even = label_smoothing / all_classes
    target_sum = on_label
    if SMOOTHED:
        target_sum += even * (all_classes if class_weight is None else tl.load(class_weight_sum))
    ce_scale = tl.load(scales)
    divergence_scale = tl.load(scales + 1)
    lse_scale = tl.load(scales + 2)
    label_scale = ce_scale * on_label

    # The mean of the teachers' probabilities is computed times z_total, and divided by the factor of a single teacher.
    t_factors = ()
    for j in tl.static_range(N):
        t_factors += (from_halves(mixture[j], real) * z_total / t_totals[j],)
    unit = t_factors[0] if N == 1 else tl.full((), 1, real)
    p_factor = (ce_scale * target_sum + 2 * lse_scale * lse) / plain_total
    q_factor = divergence_scale * temperature / z_total if N > 0 else tl.zeros((), real)
    factors = (p_factor, q_factor, q_factor * unit, t_factors)
    shifts = (z_shift,)
    shifts += t_shifts
    of_target = (p_log, label_scale, even, ce_scale)
    FLAGS: tl.constexpr = (SMOOTHED, TEMPERED, teacher_lse is not None, PTX)

    LANES: tl.constexpr = HEIGHT if FOLD == 1 else WIDTH
    sums = (tl.zeros((LANES,), real), tl.zeros((LANES,), real))
    edge_sums = (tl.zeros((), real), tl.zeros((), real))
    weights = class_weight if SMOOTHED else None
    if gradient is not None or N > 0 or SMOOTHED:
        # The last tile comes first, because it is still in the cache.
        if WHOLE or end < body:
            if not WHOLE:
                tiles = load_tiles(pointers, end + columns, inside, real, "evict_first", PTX)
            here = column_of_label >= end
            sums = _differentiate(
                tiles, end + columns, inside, column_of_label, here, gradient, weights, sums,
                numbers_of_row, shifts, factors, of_target, FOLD, FLAGS,
            )  # fmt: skip
        for i in tl.range(0, end, HEIGHT * WIDTH, num_stages=STAGES):
            start = end - HEIGHT * WIDTH - i
            tiles = load_tiles(pointers, start + columns, None, real, "evict_first", PTX)
            here = column_of_label >= start and column_of_label < start + HEIGHT * WIDTH
            sums = _differentiate(
                tiles, start + columns, None, column_of_label, here, gradient, weights, sums,
                numbers_of_row, shifts, factors, of_target, FOLD, FLAGS,
            )  # fmt: skip
        if EDGES:  # loaded again, rather than kept in registers
            edge_tiles = load_tiles(pointers, edge, inside_edge, real, "", PTX)
            edge_sums = _differentiate(
                edge_tiles, edge, inside_edge, column_of_label, True, gradient, weights, edge_sums,
                numbers_of_row, shifts, factors, of_target, 0, FLAGS,
            )  # fmt: skip

    cross_entropy = (label_entropy + tl.sum(sums[1]) + edge_sums[1]) * LN2
    divergence = (tl.sum(sums[0]) + edge_sums[0]) * (unit / z_total) * LN2
    if not IS_MERGED:
        divergence = tl.where(divergence < 0, 0.0, divergence)  # only rounding makes it negative; NaN stays NaN
    distillation = divergence_scale * temperature * temperature * divergence
    tl.store(losses + row, ce_scale * cross_entropy + distillation + lse_scale * lse * lse)
    tl.store(parts + row, cross_entropy)
    tl.store(parts + rows + row, divergence)
