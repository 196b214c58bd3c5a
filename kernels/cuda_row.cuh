// One row of the loss on a cluster of thread blocks; codistillation.cu launches it.
//
// Each block holds the same columns of the student and of every teacher. The blocks exchange two things through
// distributed shared memory: the softmax statistics of their columns, and at the end their sums of the losses. Several
// blocks share a multiprocessor: one computes while the others load. The gradient takes the student's place in shared
// memory, from where it is stored. Sums have a fixed order, so that repeated calls give the same bits.
//
// Exponentials and logarithms are in base 2, like the instructions: "log" below means log2. A logsumexp is stored as
// `shift` and `log_sum`, never as their sum: at logits of 1e4, rounding would lose the log of the sum.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "ptx.cuh"

namespace {

namespace cg = cooperative_groups;

constexpr int kMostTeachers = 8, kMostBlocks = 16, kWarp = 32;
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// `Format` is the storage type of a logit, `Real` the type of arithmetic.
template <class Format>
using RealOf = std::conditional_t<std::is_same_v<Format, double>, double, float>;
// Threads of a multiprocessor. A thread has 80 registers; double needs more.
template <class Real>
constexpr int kMostThreads = std::is_same_v<Real, double> ? 512 : 768;
template <class Format>
constexpr int kWidth = sizeof(uint4) / sizeof(Format);  // columns per vector, which a thread loads at once

template <class Real>
constexpr Real kSmallest = std::numeric_limits<Real>::min();  // smaller numbers have lost bits, and their log is -inf
template <class Real>
constexpr Real kLargest = std::numeric_limits<Real>::max();

// HpcdistillRows in the form of kernel arguments.
template <class Format>
struct Call {
  using Real = RealOf<Format>;
  int64_t rows;
  int classes, teachers;
  int vectors;                              // per block, of every stream
  const Format* logits[1 + kMostTeachers];  // the streams: the student, then the teachers
  int64_t strides[1 + kMostTeachers];
  Real mixture[kMostTeachers];
  const Real *teacher_lse, *class_weight, *scales;
  const int64_t* target;
  Real temperature;
  Real label_smoothing, smooth;  // in all; for each class
  Real sharpness;                // log2(e) / temperature
  int64_t ignore_index;
  Real *losses, *parts;
  Format* gradient;
  int64_t gradient_stride;
};

// sum(2^(x - shift)) over some x, and the shift, which is their maximum or a number near it.
template <class Real>
struct Statistic {
  Real shift = std::numeric_limits<Real>::lowest(), sum = 0;  // for no x; -inf - -inf would be NaN
};

// Normalizer of a whole row: 2^(x - shift) * factor is a probability, for a teacher times its share of the mixture.
template <class Real>
struct Normalizer {
  Real shift, log_sum, factor, sum;
  __device__ Real lse() const { return (shift + log_sum) * static_cast<Real>(kLn2); }
};

template <class Real>
struct Losses {
  Real cross_entropy, divergence;
};

// Data that the threads of a block share; the streams follow it in shared memory.
template <class Real>
struct alignas(16) Shared {
  static constexpr int kStatistics = kMostTeachers + 3, kWarps = kMostThreads<Real> / kWarp;
  uint64_t arrived[1 + kMostTeachers];  // an mbarrier per stream
  Statistic<Real> warps[kStatistics][kWarps], blocks[kStatistics][kMostBlocks];
  Normalizer<Real> row[kStatistics];
  Losses<Real> warp_losses[kWarps], block_losses[kMostBlocks];
};

__device__ double exp2_of(double x) { return exp2(x); }
__device__ double log2_of(double x) { return log2(x); }

template <class Format>
__device__ void unpack(uint4 vector, RealOf<Format>* x) {
  if constexpr (std::is_same_v<Format, __nv_bfloat16>) {
    const unsigned words[] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(words[i] << 16);
      x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else {
    const Format* stored = reinterpret_cast<const Format*>(&vector);
#pragma unroll
    for (int i = 0; i < kWidth<Format>; ++i) x[i] = static_cast<RealOf<Format>>(stored[i]);
  }
}

template <class Format>
__device__ uint4 packed(const RealOf<Format>* x) {
  alignas(uint4) Format stored[kWidth<Format>];
#pragma unroll
  for (int i = 0; i < kWidth<Format>; ++i) stored[i] = static_cast<Format>(x[i]);
  return *reinterpret_cast<const uint4*>(stored);
}

// Returns the maximum of the columns of some vectors; 16-bit columns are compared two at a time.
template <class Format, int COUNT>
__device__ RealOf<Format> largest(const uint4 (&vectors)[COUNT]) {
  using Real = RealOf<Format>;
  if constexpr (sizeof(Format) == 2) {
    using Two = std::conditional_t<std::is_same_v<Format, __half>, __half2, __nv_bfloat162>;
    const Two* two = reinterpret_cast<const Two*>(vectors);
    Two most = two[0];
#pragma unroll
    for (int i = 1; i < COUNT * 4; ++i) most = __hmax2(most, two[i]);
    return max(static_cast<Real>(most.x), static_cast<Real>(most.y));
  } else {
    const Real* x = reinterpret_cast<const Real*>(vectors);
    Real most = x[0];
#pragma unroll
    for (int i = 1; i < COUNT * kWidth<Format>; ++i) most = max(most, x[i]);
    return most;
  }
}

// Returns the 16 bytes that begin `bytes` after the start of `a`, where `b` follows `a`; a multiple of 2 below 16.
__device__ uint4 shifted(uint4 a, uint4 b, unsigned bytes) {
  if (bytes & 8) {
    a = {a.z, a.w, b.x, b.y};
    b = {b.z, b.w, 0, 0};
  }
  if (bytes & 4) {
    a = {a.y, a.z, a.w, b.x};
    b.x = b.y;
  }
  const unsigned bits = bytes % 4 * 8;
  return {__funnelshift_r(a.x, a.y, bits), __funnelshift_r(a.y, a.z, bits), __funnelshift_r(a.z, a.w, bits),
          __funnelshift_r(a.w, b.x, bits)};
}

// Copies `vectors` vectors from an address that is not aligned to them, so that each is made of two. The threads of the
// block share them.
template <class Format>
__device__ void copy_shifted(uint4* to, const Format* from, int vectors) {
  const unsigned bytes = reinterpret_cast<uintptr_t>(from) % sizeof(uint4);
  const uint4* aligned = reinterpret_cast<const uint4*>(from - bytes / sizeof(Format));
#pragma unroll 1
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) to[i] = shifted(aligned[i], aligned[i + 1], bytes);
}

template <class Real>
__device__ Real maximum_of_warp(Real x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

// Every lane gets the same bits.
template <class Real>
__device__ Real sum_of_warp(Real x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

// Merges the statistics of a warp.
template <class Real>
__device__ Statistic<Real> merged(Statistic<Real> a) {
  const Real shift = maximum_of_warp(a.shift);
  return {shift, sum_of_warp(a.sum * exp2_of(a.shift - shift))};
}

template <class Real>
__device__ Losses<Real> summed(Losses<Real> a) {
  return {sum_of_warp(a.cross_entropy), sum_of_warp(a.divergence)};
}

__device__ int clamped(int x, int low, int high) { return min(max(x, low), high); }

__device__ bool same_alignment(const void* a, const void* b) {
  return (reinterpret_cast<uintptr_t>(a) - reinterpret_cast<uintptr_t>(b)) % sizeof(uint4) == 0;
}

// The row is divided into vectors at the 16-byte boundaries of the student's addresses. Vectors [body_, body_end_) of
// the block are complete. Those before and after extend beyond the row; there they hold -inf, which adds 0 to all sums.
//
// TEACHERS is 0, 1, or kMostTeachers for any number; TEMPERED says that the temperature is not 1.
template <class Format, int TEACHERS, bool TEMPERED>
class Row {
  using Real = RealOf<Format>;
  static constexpr int W = kWidth<Format>;
  // Sums over a row have numbers: 0 for the student, then those of the teachers, and these.
  static constexpr int kTempered = TEACHERS + 1, kClassWeights = TEACHERS + 2, kStatistics = TEACHERS + 3;

 public:
  __device__ Row(const Call<Format>& call, uint4* memory)
      : call_(call),
        shared_(*reinterpret_cast<Shared<Real>*>(memory)),
        streams_(memory + sizeof(shared_) / sizeof(*memory)),
        blocks_(gridDim.y),
        rank_(blockIdx.y),
        row_(blockIdx.x) {
    const int lead = reinterpret_cast<uintptr_t>(stream(0)) % sizeof(uint4) / sizeof(Format);
    const int first = rank_ * call.vectors, columns = lead + call.classes;
    origin_ = first * W - lead;
    vectors_ = clamped((columns + W - 1) / W - first, 0, call.vectors);
    body_ = clamped((lead > 0) - first, 0, vectors_);
    body_end_ = clamped(columns / W - first, body_, vectors_);
  }

  __device__ void run() {
    const int64_t label = call_.target[row_];
    const bool ignored = label == call_.ignore_index;  // in all blocks of the cluster: none waits for another
    if (ignored) {
      for (int vector = threadIdx.x; vector < vectors_; vector += blockDim.x) streams_[vector] = {0, 0, 0, 0};
    } else {
      cluster_.barrier_arrive();  // normalize() waits for it
      load();
      normalize();
      const Losses<Real> losses = summed(finish(label));
      if (lane_ == 0) shared_.warp_losses[warp_] = losses;
    }
    store();
    if (!ignored) reduce();
    if (threadIdx.x != 0) return;
    wait_for_stores();
    if (ignored && rank_ == 0) write_losses(0, {0, 0}, 0);
  }

 private:
  __device__ int teachers() const { return TEACHERS < kMostTeachers ? TEACHERS : call_.teachers; }
  __device__ const Format* stream(int j) const { return call_.logits[j] + row_ * call_.strides[j]; }
  __device__ uint4* vectors_of(int j) const { return streams_ + j * call_.vectors; }
  __device__ int column(int vector) const { return origin_ + vector * W; }
  __device__ bool inside(int column) const { return 0 <= column && column < call_.classes; }
  __device__ bool is_teacher(int number) const { return 1 <= number && number <= teachers(); }

  // Loads the block's columns of every stream. Copies are still running at the end: wait_for_copy waits for them.
  __device__ void load() {
    if (threadIdx.x == 0) {
      for (int j = 0; j <= teachers(); ++j) init_barrier(shared_.arrived + j);
      publish_to_copies();
      for (int j = 0; j <= teachers(); ++j) {
        const uint32_t vectors = same_alignment(stream(j), stream(0)) ? body_end_ - body_ : 0;
        start_copy(vectors_of(j) + body_, stream(j) + column(body_), vectors * sizeof(uint4), shared_.arrived + j);
      }
    }
#pragma unroll 1
    for (int j = 0; j <= teachers(); ++j) {
      int begin = body_, end = body_end_;
      if (!same_alignment(stream(j), stream(0))) {
        // The first and the last vector would be made of bytes outside the row.
        begin = min(begin + 1, body_end_);
        end = max(end - 1, begin);
        copy_shifted(vectors_of(j) + begin, stream(j) + column(begin), end - begin);
      }
      load_by_column(j, begin, end);
    }
    __syncthreads();  // all threads see the barriers and the columns
  }

  // Loads the vectors of a stream before `begin` and from `end`.
  __device__ void load_by_column(int j, int begin, int end) {
    const int columns = (vectors_ - (end - begin)) * W;
#pragma unroll 1
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
      const int at = i < begin * W ? i : i + (end - begin) * W, k = origin_ + at;
      reinterpret_cast<Format*>(vectors_of(j))[at] = inside(k) ? stream(j)[k] : static_cast<Format>(-INFINITY);
    }
  }

  // First pass. Fills shared_.row after two exchanges: between the warps of the block, then between the blocks.
  __device__ void normalize() {
    const Real factors[] = {static_cast<Real>(kLog2E), call_.sharpness};
    Statistic<Real> student[TEMPERED ? 2 : 1];
    add_stream(0, student, factors);
    set_statistic(0, student[0]);
    if constexpr (TEMPERED) set_statistic(kTempered, student[1]);
    if (TEACHERS > 0 && !call_.teacher_lse) {
#pragma unroll 1
      for (int j = 1; j <= teachers(); ++j) {
        Statistic<Real> teacher[1];
        add_stream(j, teacher, factors + 1);
        set_statistic(j, teacher[0]);
      }
    } else {
      for (int j = 1; j <= teachers(); ++j) wait_for_copy(shared_.arrived + j);
    }
    if (is_measured(kClassWeights)) set_statistic(kClassWeights, class_weight_sum());
    __syncthreads();
    cluster_.barrier_wait();  // every block has started: its shared memory may be written
    for (int number = warp_; number < kStatistics; number += warps_) {
      if (!is_measured(number)) continue;
      const Statistic<Real> mine = merged(lane_ < warps_ ? shared_.warps[number][lane_] : Statistic<Real>{});
      if (lane_ < blocks_) cluster_.map_shared_rank(shared_.blocks[number], lane_)[rank_] = mine;
    }
    cluster_.sync();
    for (int number = warp_; number < kStatistics; number += warps_) {
      if (!is_measured(number) && !is_teacher(number)) continue;
      Normalizer<Real> whole;
      if (is_measured(number)) {
        const Statistic<Real> sum = merged(lane_ < blocks_ ? shared_.blocks[number][lane_] : Statistic<Real>{});
        whole = {sum.shift, log2(sum.sum), 1 / sum.sum, sum.sum};
      } else {
        // Treated as a logit, because logits are multiplied by a rounded sharpness. Rounding errors go to log_sum.
        const Real lse = call_.teacher_lse[(number - 1) * call_.rows + row_], logit = lse * call_.temperature;
        const Real shift = logit * call_.sharpness, lost = fma(lse, call_.temperature, -logit);
        const Real log_sum = fma(lost, call_.sharpness, fma(logit, call_.sharpness, -shift));
        whole = {shift, log_sum, exp2_of(-log_sum), exp2_of(log_sum)};
      }
      if (is_teacher(number)) whole.factor *= call_.mixture[number - 1];
      if (lane_ == 0) shared_.row[number] = whole;
    }
    __syncthreads();
  }

  // Returns whether the call computes this sum from the data.
  __device__ bool is_measured(int number) const {
    if (number == kTempered) return TEMPERED;
    if (number == kClassWeights) return call_.class_weight && call_.smooth > 0;
    return number == 0 || (is_teacher(number) && !call_.teacher_lse);
  }

  __device__ void set_statistic(int number, Statistic<Real> of_thread) {
    const Statistic<Real> of_warp = merged(of_thread);
    if (lane_ == 0) shared_.warps[number][warp_] = of_warp;
  }

  // Adds this thread's part of a stream to the sums of 2^(x * factor), for each factor.
  template <int SUMS>
  __device__ void add_stream(int j, Statistic<Real> (&sums)[SUMS], const Real* factors) {
    wait_for_copy(shared_.arrived + j);
    const int stride = blockDim.x;
    int vector = threadIdx.x;
#pragma unroll 1
    for (; vector + stride < vectors_; vector += 2 * stride) add<2>(sums, vectors_of(j) + vector, factors);
    if (vector < vectors_) add<1>(sums, vectors_of(j) + vector, factors);
  }

  // Adds COUNT of this thread's vectors.
  template <int COUNT, int SUMS>
  __device__ void add(Statistic<Real> (&sums)[SUMS], const uint4* stream, const Real* factors) {
    uint4 vectors[COUNT];
    Real x[COUNT * W];
#pragma unroll
    for (int c = 0; c < COUNT; ++c) {
      vectors[c] = stream[c * blockDim.x];
      unpack<Format>(vectors[c], x + c * W);
    }
    const Real most = largest<Format>(vectors);
#pragma unroll
    for (int s = 0; s < SUMS; ++s) {
      const Real shift = max(sums[s].shift, most * factors[s]);
      Real sum = sums[s].sum * exp2_of(sums[s].shift - shift);
#pragma unroll
      for (int i = 0; i < COUNT * W; ++i) sum += exp2_of(fma(x[i], factors[s], -shift));
      sums[s] = {shift, sum};
    }
  }

  // Returns this thread's part of the sum of the class weights, as a statistic of shift 0.
  __device__ Statistic<Real> class_weight_sum() const {
    Statistic<Real> statistic{0, 0};
    const int begin = max(origin_, 0), end = min(column(vectors_), call_.classes);
#pragma unroll 1
    for (int k = begin + threadIdx.x; k < end; k += blockDim.x) statistic.sum += call_.class_weight[k];
    return statistic;
  }

  // Second pass. Puts the gradient in the student's place in shared memory; returns this thread's part of the losses,
  // in units of ln 2.
  __device__ Losses<Real> finish(int64_t label) {
    const bool labelled = 0 <= label && label < call_.classes;
    const int label_at = labelled && label >= origin_ ? static_cast<int>(label) - origin_ : -W;
    // The label's part of the target. A label out of range makes it NaN, and through it the gradient.
    const Real label_weight = labelled ? (1 - call_.label_smoothing) * class_weight(label) : Real(NAN);
    const Real smooth = call_.smooth;
    Real target_sum = label_weight;
    if (smooth > 0) target_sum += call_.class_weight ? smooth * shared_.row[kClassWeights].sum : call_.label_smoothing;

    // gradient = p * of_student + q * of_tempered - mean * of_mean - target * scale
    const Normalizer<Real> student = shared_.row[0], tempered = shared_.row[TEMPERED ? kTempered : 0];
    const Real scale = call_.scales[0];
    const Real of_divergence = TEACHERS > 0 ? call_.scales[1] * call_.temperature : Real(0);
    const Real of_lse = scale * target_sum + 2 * call_.scales[2] * student.lse();
    const Real of_student = (TEMPERED ? of_lse : of_lse + of_divergence) * student.factor;
    const Real of_tempered = of_divergence * tempered.factor;
    const Normalizer<Real> teacher = shared_.row[TEACHERS == 1];  // the only one
    const Real mean_factor = TEACHERS == 1 ? teacher.factor : Real(1);
    const Real of_mean = of_divergence * mean_factor;

    Losses<Real> losses{labelled ? Real(0) : Real(NAN), 0};
#pragma unroll 1
    for (int vector = threadIdx.x; vector < vectors_; vector += blockDim.x) {
      Real z[W], below[W], slope[W];  // logits, log-probabilities before subtracting log_sum, gradient
      unpack<Format>(streams_[vector], z);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        below[i] = fma(z[i], static_cast<Real>(kLog2E), -student.shift);
        slope[i] = of_student * exp2_of(below[i]);
      }
      if constexpr (TEACHERS > 0) {
        Real mean[W], log_ratio[W];
        mix(streams_ + vector, teacher.shift, mean, log_ratio);
        Real divergence = 0;
#pragma unroll
        for (int i = 0; i < W; ++i) {
          const Real log_q = TEMPERED ? fma(z[i], call_.sharpness, -tempered.shift) : below[i];
          if (TEMPERED) slope[i] += of_tempered * exp2_of(log_q);
          slope[i] -= of_mean * mean[i];
          log_ratio[i] -= log_q;
          divergence += mean[i] * log_ratio[i];
        }
        // Rare: a probability of 0 times a ratio of infinity or NaN.
        if (!(fabs(divergence) <= kLargest<Real>)) divergence = careful_sum(mean, log_ratio);
        losses.divergence += divergence;
      }
      if (smooth > 0) {
#pragma unroll
        for (int i = 0; i < W; ++i) {
          if (!inside(column(vector) + i)) continue;
          const Real target = smooth * class_weight(column(vector) + i);
          slope[i] -= scale * target;
          if (target != 0) losses.cross_entropy += target * (student.log_sum - below[i]);
        }
      }
      if (vector == label_at / W) {
#pragma unroll
        for (int i = 0; i < W; ++i) slope[i] -= i == label_at % W ? scale * label_weight : Real(0);
        // below[label_at % W] would move `below` into local memory.
        const Real z_label = static_cast<Real>(reinterpret_cast<const Format*>(streams_)[label_at]);
        const Real below_label = fma(z_label, static_cast<Real>(kLog2E), -student.shift);
        if (label_weight != 0) losses.cross_entropy += label_weight * (student.log_sum - below_label);
      }
      streams_[vector] = packed<Format>(slope);
    }
    losses.divergence *= mean_factor;
    return losses;
  }

  __device__ Real class_weight(int64_t column) const {
    return call_.class_weight ? call_.class_weight[column] : Real(1);
  }

  // Computes the teachers' mean probability in a vector of columns, and its log. With one teacher, whose shift is
  // `only_shift`, both lack its factor and log_sum, so that no logarithm is needed.
  __device__ void mix(const uint4* vector, Real only_shift, Real* mean, Real* log_mean) const {
    Real x[W];
    if constexpr (TEACHERS == 1) {
      unpack<Format>(vector[call_.vectors], x);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        log_mean[i] = fma(x[i], call_.sharpness, -only_shift);
        mean[i] = exp2_of(log_mean[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < W; ++i) mean[i] = 0;
#pragma unroll 1
      for (int j = 1; j <= teachers(); ++j) {
        const Normalizer<Real> teacher = shared_.row[j];
        unpack<Format>(vector[j * call_.vectors], x);
#pragma unroll
        for (int i = 0; i < W; ++i) mean[i] += teacher.factor * exp2_of(fma(x[i], call_.sharpness, -teacher.shift));
      }
#pragma unroll
      for (int i = 0; i < W; ++i) log_mean[i] = log2_of(mean[i]);
    }
  }

  // A probability of 0 adds 0, even if its ratio is infinite or NaN; a NaN adds NaN.
  __device__ static Real careful_sum(const Real* mean, const Real* log_ratio) {
    Real sum = 0;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if (!(mean[i] < kSmallest<Real>)) sum += mean[i] * log_ratio[i];
    }
    return sum;
  }

  // Stores the gradient from shared memory. The stores are still running at the end: wait_for_stores waits for them.
  __device__ void store() {
    publish_to_copies();
    __syncthreads();  // all threads have written their columns
    if (!call_.gradient) return;
    Format* to = call_.gradient + row_ * call_.gradient_stride;
    const Format* from = reinterpret_cast<const Format*>(streams_);
    const int first = max(origin_, 0), last = min(column(vectors_), call_.classes);
    // Columns [begin, begin + vectors * W) are complete vectors of the gradient.
    const unsigned bytes_to_vector = -reinterpret_cast<uintptr_t>(to + first) % sizeof(uint4);
    const int begin = min(first + static_cast<int>(bytes_to_vector / sizeof(Format)), last);
    const int vectors = (last - begin) / W;
    if (!same_alignment(to, stream(0))) {
      copy_shifted(reinterpret_cast<uint4*>(to + begin), from + (begin - origin_), vectors);
    } else if (threadIdx.x == 0) {
      start_store(to + begin, from + (begin - origin_), vectors * sizeof(uint4));
    }
#pragma unroll 1
    for (int i = first + threadIdx.x; i < last - vectors * W; i += blockDim.x) {
      const int k = i < begin ? i : i + vectors * W;
      to[k] = from[k - origin_];
    }
  }

  // Sums the losses over the cluster. Blocks send theirs to block 0, which ends after it has received them all.
  __device__ void reduce() {
    if (warp_ == 0) {
      const Losses<Real> losses = summed(lane_ < warps_ ? shared_.warp_losses[lane_] : Losses<Real>{0, 0});
      if (lane_ == 0) cluster_.map_shared_rank(shared_.block_losses, 0)[rank_] = losses;
    }
    cluster_.sync();
    if (rank_ != 0 || warp_ != 0) return;
    Losses<Real> losses = summed(lane_ < blocks_ ? shared_.block_losses[lane_] : Losses<Real>{0, 0});
    if (TEACHERS > 0) {
      // finish() has left out the difference of the logs of sums, which is the same for all columns.
      losses.divergence += shared_.row[TEMPERED ? kTempered : 0].log_sum;
      if (TEACHERS == 1) losses.divergence -= shared_.row[1].log_sum;
    }
    const Real ln2 = static_cast<Real>(kLn2), lse = shared_.row[0].lse();
    losses = {losses.cross_entropy * ln2, losses.divergence < 0 ? Real(0) : losses.divergence * ln2};  // NaN stays NaN
    const Real divergence = call_.temperature * call_.temperature * losses.divergence;
    const Real loss =
        call_.scales[0] * losses.cross_entropy + call_.scales[1] * divergence + call_.scales[2] * lse * lse;
    if (lane_ == 0) write_losses(loss, losses, lse);
  }

  __device__ void write_losses(Real loss, Losses<Real> losses, Real lse) {
    call_.losses[row_] = loss;
    call_.parts[row_] = losses.cross_entropy;
    call_.parts[call_.rows + row_] = losses.divergence;
    call_.parts[2 * call_.rows + row_] = lse;
  }

  const Call<Format>& call_;
  Shared<Real>& shared_;
  uint4* const streams_;
  const cg::cluster_group cluster_ = cg::this_cluster();
  const int warp_ = threadIdx.x / kWarp, lane_ = threadIdx.x % kWarp, warps_ = blockDim.x / kWarp;
  const int blocks_, rank_;  // blocks of the cluster, and the number of this one
  const int64_t row_;
  int origin_, vectors_, body_, body_end_;  // the column of vector 0; vectors are numbered within the block
};

}  // namespace
