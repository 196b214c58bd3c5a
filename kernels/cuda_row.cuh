// One row of the loss on a cluster of thread blocks; codistillation.cu launches it.
//
// Each block holds the same columns of the student and of every teacher. The blocks exchange two things through
// distributed shared memory: the softmax statistics of their columns, and at the end their sums of the losses. Several
// blocks share a multiprocessor: one computes while the others load. Sums have a fixed order, so that repeated calls
// give the same bits.
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
// Sums over a row have numbers: 0 for the student, 1 to 8 for the teachers, and these.
constexpr int kTempered = kMostTeachers + 1, kClassWeights = kMostTeachers + 2, kStatistics = kMostTeachers + 3;
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// `Format` is the storage type of a logit, `Real` the type of arithmetic.
template <class Format>
using RealOf = std::conditional_t<std::is_same_v<Format, double>, double, float>;
// Threads of 64 registers each; double needs more.
template <class Real>
constexpr int kMostThreads = std::is_same_v<Real, double> ? 512 : 1024;
template <class Format>
constexpr int kWidth = sizeof(uint4) / sizeof(Format);  // columns per vector, which a thread loads at once

template <class Real>
constexpr Real kSmallest = std::numeric_limits<Real>::min();  // smaller numbers have lost bits, and their log is -inf

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
  Real temperature, label_smoothing;
  Real sharpness;  // log2(e) / temperature
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
  uint64_t arrived[1 + kMostTeachers];  // an mbarrier per stream
  Statistic<Real> warps[kStatistics][kMostThreads<Real> / kWarp], blocks[kStatistics][kMostBlocks];
  Normalizer<Real> row[kStatistics];
  Losses<Real> warp_losses[kMostThreads<Real> / kWarp], block_losses[kMostBlocks];
};

__device__ double exp2_of(double x) { return exp2(x); }
__device__ double log2_of(double x) { return log2(x); }

template <class Format>
__device__ void unpack(uint4 vector, RealOf<Format>* x) {
  const Format* stored = reinterpret_cast<const Format*>(&vector);
#pragma unroll
  for (int i = 0; i < kWidth<Format>; ++i) x[i] = static_cast<RealOf<Format>>(stored[i]);
}

template <class Real>
__device__ Statistic<Real> merged(Statistic<Real> a, Statistic<Real> b) {
  const Real shift = max(a.shift, b.shift);
  return {shift, a.sum * exp2_of(a.shift - shift) + b.sum * exp2_of(b.shift - shift)};
}

// Merges the statistics of a warp; every lane gets the same bits.
template <class Real>
__device__ Statistic<Real> merged(Statistic<Real> a) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    a = merged(a, {__shfl_xor_sync(~0u, a.shift, lanes), __shfl_xor_sync(~0u, a.sum, lanes)});
  }
  return {__shfl_sync(~0u, a.shift, 0), __shfl_sync(~0u, a.sum, 0)};
}

template <class Real>
__device__ Losses<Real> summed(Losses<Real> a) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    a.cross_entropy += __shfl_xor_sync(~0u, a.cross_entropy, lanes);
    a.divergence += __shfl_xor_sync(~0u, a.divergence, lanes);
  }
  return a;
}

__device__ int clamped(int x, int low, int high) { return min(max(x, low), high); }

__device__ bool same_alignment(const void* a, const void* b) {
  return (reinterpret_cast<uintptr_t>(a) - reinterpret_cast<uintptr_t>(b)) % sizeof(uint4) == 0;
}

// The row is divided into vectors at the 16-byte boundaries of the student's addresses. Vectors [body_, body_end_) of
// the block are complete. Those before and after extend beyond the row; there they hold -inf, which adds 0 to all sums.
template <class Format>
class Row {
  using Real = RealOf<Format>;
  static constexpr int W = kWidth<Format>;

 public:
  __device__ Row(const Call<Format>& call, uint4* memory)
      : call_(call),
        shared_(*reinterpret_cast<Shared<Real>*>(memory)),
        streams_(memory + sizeof(shared_) / sizeof(*memory)),
        blocks_(cluster_.num_blocks()),
        row_(blockIdx.x / blocks_) {
    const int lead = reinterpret_cast<uintptr_t>(stream(0)) % sizeof(uint4) / sizeof(Format);
    const int first = cluster_.block_rank() * call.vectors, columns = lead + call.classes;
    origin_ = first * W - lead;
    vectors_ = clamped((columns + W - 1) / W - first, 0, call.vectors);
    body_ = clamped((lead > 0) - first, 0, vectors_);
    body_end_ = clamped(columns / W - first, body_, vectors_);
    if (call.gradient) gradient_ = call.gradient + row_ * call.gradient_stride;
    aligned_ = same_alignment(gradient_, stream(0));
  }

  template <int TEACHERS, bool TEMPERED>
  __device__ void run() {
    const int64_t label = call_.target[row_];
    if (label == call_.ignore_index) return write_zeros();  // in all blocks of the cluster: none waits for another
    cluster_.barrier_arrive();                              // normalize() waits for it
    load();
    normalize();
    for (int j = 0; j <= call_.teachers; ++j) wait_for_copy(shared_.arrived + j);
    reduce(finish<TEACHERS, TEMPERED>(label));
  }

 private:
  __device__ const Format* stream(int j) const { return call_.logits[j] + row_ * call_.strides[j]; }
  __device__ int column(int vector) const { return origin_ + vector * W; }
  __device__ bool inside(int column) const { return 0 <= column && column < call_.classes; }
  __device__ bool is_teacher(int number) const { return 1 <= number && number <= call_.teachers; }

  // Loads the block's columns of every stream. Copies are still running at the end: wait_for_copy waits for them. A
  // stream whose alignment differs from the student's is loaded by columns.
  __device__ void load() {
    if (threadIdx.x == 0) {
      for (int j = 0; j <= call_.teachers; ++j) init_barrier(shared_.arrived + j);
      publish_barriers();
      for (int j = 0; j <= call_.teachers; ++j) {
        const uint32_t vectors = same_alignment(stream(j), stream(0)) ? body_end_ - body_ : 0;
        start_copy(streams_ + j * call_.vectors + body_, stream(j) + column(body_), vectors * sizeof(uint4),
                   shared_.arrived + j);
      }
    }
    for (int j = 0; j <= call_.teachers; ++j) {
      const bool copied = same_alignment(stream(j), stream(0));
      load_by_column(j, 0, copied ? body_ : vectors_);
      if (copied) load_by_column(j, body_end_, vectors_);
    }
    __syncthreads();  // all threads see the barriers and the columns
  }

  __device__ void load_by_column(int j, int begin, int end) {
    for (int vector = begin + threadIdx.x; vector < end; vector += blockDim.x) {
      Format* x = reinterpret_cast<Format*>(streams_ + j * call_.vectors + vector);
      for (int i = 0; i < W; ++i) {
        x[i] = inside(column(vector) + i) ? stream(j)[column(vector) + i] : static_cast<Format>(-INFINITY);
      }
    }
  }

  // First pass. Fills shared_.row after two exchanges: between the warps of the block, then between the blocks.
  __device__ void normalize() {
    for (int number = 0; number < kStatistics; ++number) {
      if (!is_measured(number)) continue;
      const Statistic<Real> mine = merged(number == kClassWeights ? class_weight_sum() : stream_sum(number));
      if (lane_ == 0) shared_.warps[number][warp_] = mine;
    }
    __syncthreads();
    cluster_.barrier_wait();  // every block has started: its shared memory may be written
    for (int number = warp_; number < kStatistics; number += warps_) {
      if (!is_measured(number)) continue;
      const Statistic<Real> mine = merged(lane_ < warps_ ? shared_.warps[number][lane_] : Statistic<Real>{});
      if (lane_ < blocks_) cluster_.map_shared_rank(shared_.blocks[number], lane_)[cluster_.block_rank()] = mine;
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
    if (number == kTempered) return call_.temperature != 1;
    if (number == kClassWeights) return call_.class_weight && call_.label_smoothing > 0;
    return number == 0 || (is_teacher(number) && !call_.teacher_lse);
  }

  // Returns this thread's part of the sum of a softmax.
  __device__ Statistic<Real> stream_sum(int number) {
    const int j = is_teacher(number) ? number : 0;
    const Real factor = number == 0 ? static_cast<Real>(kLog2E) : call_.sharpness;
    const uint4* stream = streams_ + j * call_.vectors;
    wait_for_copy(shared_.arrived + j);
    Statistic<Real> statistic;
#pragma unroll 1
    for (int vector = threadIdx.x; vector < vectors_; vector += blockDim.x) {
      Real x[W];
      unpack<Format>(stream[vector], x);
      Real largest = x[0], sum = 0;
#pragma unroll
      for (int i = 1; i < W; ++i) largest = max(largest, x[i]);
      const Real shift = max(statistic.shift, largest * factor);
#pragma unroll
      for (int i = 0; i < W; ++i) sum += exp2_of(fma(x[i], factor, -shift));
      statistic = {shift, statistic.sum * exp2_of(statistic.shift - shift) + sum};
    }
    return statistic;
  }

  // Returns this thread's part of the sum of the class weights, as a statistic of shift 0.
  __device__ Statistic<Real> class_weight_sum() const {
    Statistic<Real> statistic{0, 0};
    const int begin = max(origin_, 0), end = min(column(vectors_), call_.classes);
    for (int k = begin + threadIdx.x; k < end; k += blockDim.x) statistic.sum += call_.class_weight[k];
    return statistic;
  }

  // Second pass. Writes the gradient of the block's columns; returns this thread's part of the losses, in units of
  // ln 2. TEACHERS is 0, 1, or kMostTeachers for any number.
  template <int TEACHERS, bool TEMPERED>
  __device__ Losses<Real> finish(int64_t label) {
    const bool labelled = 0 <= label && label < call_.classes;
    const int label_at = labelled && label >= origin_ ? static_cast<int>(label) - origin_ : -W;
    const Real smooth = call_.label_smoothing / call_.classes;
    // The label's part of the target. A label out of range makes it NaN, and through it the gradient.
    const Real label_weight = labelled ? (1 - call_.label_smoothing) * class_weight(label) : Real(NAN);
    Real target_sum = label_weight;
    if (smooth > 0) target_sum += call_.class_weight ? smooth * shared_.row[kClassWeights].sum : call_.label_smoothing;

    // gradient = p * of_student + q * of_tempered - mean * of_mean - target * scale
    const Normalizer<Real> student = shared_.row[0], tempered = shared_.row[TEMPERED ? kTempered : 0];
    const Real scale = call_.scales[0];
    const Real of_divergence = TEACHERS > 0 ? call_.scales[1] * call_.temperature : Real(0);
    const Real of_lse = scale * target_sum + 2 * call_.scales[2] * student.lse();
    const Real of_student = (TEMPERED ? of_lse : of_lse + of_divergence) * student.factor;
    const Real of_tempered = of_divergence * tempered.factor;
    const Real mean_factor = TEACHERS == 1 ? shared_.row[1].factor : Real(1);
    const Real of_mean = of_divergence * mean_factor;
    const Real log_sums = tempered.log_sum - (TEACHERS == 1 ? shared_.row[1].log_sum : Real(0));

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
        Real mean[W], log_mean[W];
        mix<TEACHERS>(streams_ + vector, mean, log_mean);
#pragma unroll
        for (int i = 0; i < W; ++i) {
          const Real log_q = TEMPERED ? fma(z[i], call_.sharpness, -tempered.shift) : below[i];
          if (TEMPERED) slope[i] += of_tempered * exp2_of(log_q);
          slope[i] -= of_mean * mean[i];
          // A probability of 0 adds 0, even if log_q is -inf; a NaN adds NaN.
          if (!(mean[i] < kSmallest<Real>)) losses.divergence += mean[i] * (log_mean[i] - log_q + log_sums);
        }
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
      if (gradient_) store(vector, slope);
    }
    losses.divergence *= mean_factor;
    return losses;
  }

  __device__ Real class_weight(int64_t column) const {
    return call_.class_weight ? call_.class_weight[column] : Real(1);
  }

  // Computes the teachers' mean probability in a vector of columns, and its log. With one teacher, both lack its factor
  // and log_sum, so that no logarithm is needed.
  template <int TEACHERS>
  __device__ void mix(const uint4* vector, Real* mean, Real* log_mean) const {
    Real x[W];
    if constexpr (TEACHERS == 1) {
      unpack<Format>(vector[call_.vectors], x);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        log_mean[i] = fma(x[i], call_.sharpness, -shared_.row[1].shift);
        mean[i] = exp2_of(log_mean[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < W; ++i) mean[i] = 0;
#pragma unroll 1
      for (int j = 1; j <= call_.teachers; ++j) {
        const Normalizer<Real> teacher = shared_.row[j];
        unpack<Format>(vector[j * call_.vectors], x);
#pragma unroll
        for (int i = 0; i < W; ++i) mean[i] += teacher.factor * exp2_of(fma(x[i], call_.sharpness, -teacher.shift));
      }
#pragma unroll
      for (int i = 0; i < W; ++i) log_mean[i] = log2_of(mean[i]);
    }
  }

  __device__ void store(int vector, const Real* slope) {
    alignas(uint4) Format stored[W];
#pragma unroll
    for (int i = 0; i < W; ++i) stored[i] = static_cast<Format>(slope[i]);
    Format* to = gradient_ + column(vector);
    if (body_ <= vector && vector < body_end_ && aligned_) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(stored);
    } else {
#pragma unroll
      for (int i = 0; i < W; ++i) {
        if (inside(column(vector) + i)) to[i] = stored[i];
      }
    }
  }

  __device__ void write_zeros() {
    const Real zeros[W] = {};
    if (gradient_) {
      for (int vector = threadIdx.x; vector < vectors_; vector += blockDim.x) store(vector, zeros);
    }
    if (cluster_.block_rank() == 0 && threadIdx.x == 0) write_losses(0, {0, 0}, 0);
  }

  // Sums the losses over the cluster. Blocks send theirs to block 0, which ends after it has received them all.
  __device__ void reduce(Losses<Real> losses) {
    losses = summed(losses);
    if (lane_ == 0) shared_.warp_losses[warp_] = losses;
    __syncthreads();
    if (warp_ == 0) {
      losses = summed(lane_ < warps_ ? shared_.warp_losses[lane_] : Losses<Real>{0, 0});
      if (lane_ == 0) cluster_.map_shared_rank(shared_.block_losses, 0)[cluster_.block_rank()] = losses;
    }
    cluster_.sync();
    if (cluster_.block_rank() != 0 || warp_ != 0) return;
    losses = summed(lane_ < blocks_ ? shared_.block_losses[lane_] : Losses<Real>{0, 0});
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
  const int blocks_;
  const int64_t row_;
  int origin_, vectors_, body_, body_end_;  // the column of vector 0; vectors are numbered within the block
  Format* gradient_ = nullptr;
  bool aligned_;  // alignment of the gradient equals the student's: it can be stored by vectors
};

}  // namespace
