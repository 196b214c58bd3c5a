// One row of the loss on a CPU. Compiled once for each instruction set, with HPCDISTILL_ROW as the function's name.
//
// Each tensor's row is read from memory once. Its exponentials e = 2^y with y = c * x + offset are stored in scratch
// memory, which stays in the cache; probabilities, e / sum of e, are computed from there. The offset is estimated from
// the first columns of the row, so that no pass is needed for the maximum. If the sum is too large or NaN, the estimate
// was wrong, and the pass is repeated with the maximum. Computations that occur once per row are in double.
//
// With c = log2(e) / T, log2(probability) = y - log2(sum). Above 3e8, logits / T are lost in the rounding of y.
#include "cpu_row.h"

#include "formats.h"

namespace {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.693147180559945309417;
constexpr int64_t kEstimateColumns = 64;
constexpr double kLargestSum = 0x1p30;  // exponents above 30 would be rounded too coarsely
constexpr int64_t kFlushColumns = 8192;
constexpr int64_t kPrefetchBytes = 4096;

// A sum over a row: in vectors over kFlushColumns columns, then in double.
template <class Real>
struct Sum {
  Vector<Real> a{}, b{};
  double total = 0;

  INLINE void flush() {
    total += sum<Real>(a + b);
    a = b = Vector<Real>{};
  }
};

template <class F>
class Row {
  using Real = typename F::Real;
  using Element = typename F::Element;
  using V = Vector<Real>;

  struct Exponentials {
    const Element* x;
    Real* e;  // in scratch memory, group by group
    Real c, offset;
    double sum, log2_sum;
    double gap;  // for a single teacher: the sum of e * (y - the student's y)

    INLINE Pair<Real> exponents(Pair<Real> pair) const {
      return {fused(fill(c), pair.a, fill(offset)), fused(fill(c), pair.b, fill(offset))};
    }
    double exponent_at(int64_t column) const {
      return double(c) * load_group(x + column, 1).a[0] + offset;
    }
    double at(int64_t column) const { return __builtin_exp2(exponent_at(column)); }
    // The x whose exponential is 1. Because c is rounded, inputs and outputs of the kernel are relative to it.
    double reference() const { return -double(offset) / c; }
    // Logsumexp of x / T, for c = log2(e) / T.
    double lse(double T) const { return reference() / T + kLn2 * log2_sum; }
    // log2 of the sum over all classes, given their logsumexp of x / T.
    double log2_norm(double lse, double T) const { return kLog2E * (lse - reference() / T); }
  };

  struct CrossEntropy {
    double value, target;  // `target` is the sum of the label-smoothed target over all classes
  };

  // Factors of the terms of the gradient.
  struct Factors {
    double student, tempered, mixture, smoothing;
  };

 public:
  Row(const HpcdistillRows& call, int64_t row, void* scratch, bool streaming)
      : call(call),
        row(row),
        classes(call.classes),
        label(call.target[row] - call.first_class),
        teachers(call.teachers),
        gradient(call.gradient ? static_cast<Element*>(call.gradient) + row * call.gradient_stride : nullptr),
        streaming(streaming && reinterpret_cast<uintptr_t>(gradient) % VECTOR_BYTES == 0),
        class_weight(static_cast<const Real*>(call.class_weight)),
        shard_lse(call.shard_lse),
        scratch(static_cast<Real*>(scratch)),
        shares(this->scratch + (teachers + 2) * scratch_stride(classes)) {}

  void run() {
    const bool ignored = call.target[row] == call.ignore_index;
    if (shard_lse && !call.is_merged) return find_lse(ignored);
    if (ignored) {
      if (gradient) memset(gradient, 0, classes * sizeof *gradient);
      return write(0, 0, 0, 0);
    }
    const double T = call.temperature;
    const Real* const scales = static_cast<const Real*>(call.scales);
    const double cross_entropy_scale = scales[0], divergence_scale = scales[1], lse_scale = scales[2];
    const Element* z = student_row();

    const Exponentials student = over_all_classes(exponentials(z, kLog2E, 0), 1, 0);
    const double lse = shard_lse ? shard_lse[row] : student.lse(1);
    const CrossEntropy cross_entropy = cross_entropy_of(student);
    Factors factors{};
    factors.student = (cross_entropy_scale * cross_entropy.target + 2 * lse_scale * lse) / student.sum;
    factors.smoothing = cross_entropy_scale * call.label_smoothing / call.all_classes;
    double label_gradient =
        has_label() ? factors.student * student.at(label) - cross_entropy_scale * target_of_label() : 0;

    Exponentials tempered = student;
    double divergence = 0;
    if (teachers) {
      if (T != 1) tempered = over_all_classes(exponentials(z, kLog2E / T, teachers + 1), T, 1);
      factors.mixture = divergence_scale * T;
      (T != 1 ? factors.tempered : factors.student) += factors.mixture / tempered.sum;
      double mass = 0, at_label = 0;  // sum of the mixture (1 except in a shard), and its probability of the label
      for (int j = 0; j < teachers; ++j) {
        const Exponentials teacher =
            exponentials(teacher_row(j), kLog2E / T, j + 1, teachers == 1 ? &tempered : nullptr);
        const double log2_norm = log2_norm_of(teacher, j);
        const double norm = log2_norm == teacher.log2_sum ? teacher.sum : __builtin_exp2(log2_norm);
        shares[j] = call.mixture[j] / norm;
        mass += call.mixture[j] / norm * teacher.sum;
        if (has_label()) at_label += call.mixture[j] / norm * teacher.at(label);
        if (teachers == 1) divergence = teacher.gap / norm - mass * log2_norm;
      }
      if (has_label()) label_gradient += factors.mixture * (tempered.at(label) / tempered.sum - at_label);
      divergence += mass * tempered.log2_sum;
    }
    if (gradient || teachers > 1) divergence += mix(tempered, factors, label_gradient);
    // Over all classes only rounding makes it negative; NaN stays NaN.
    divergence = divergence < 0 && !shard_lse ? 0 : kLn2 * divergence;

    const double distillation = divergence_scale * T * T * divergence;
    write(cross_entropy_scale * cross_entropy.value + distillation + lse_scale * lse * lse, cross_entropy.value,
          divergence, lse);
  }

 private:
  const HpcdistillRows& call;
  const int64_t row, classes, label;  // the label's column, which may be in another shard
  const int teachers;
  Element* const gradient;
  const bool streaming;  // for whole vectors at aligned addresses
  const Real* const class_weight;
  double* const shard_lse;
  Real* const scratch;
  Real* const shares;  // shares of the teachers / their sums

  // First call of a shard.
  void find_lse(bool ignored) const {
    const double T = call.temperature;
    const auto lse_of = [&](const Element* x, double T) {
      return ignored ? 0 : exponentials(x, kLog2E / T, 0).lse(T);
    };
    double* const lse = shard_lse + row;
    lse[0] = lse_of(student_row(), 1);
    lse[call.rows] = T == 1 ? lse[0] : lse_of(student_row(), T);
    for (int j = 0; j < teachers; ++j) lse[(2 + j) * call.rows] = lse_of(teacher_row(j), T);
  }

  // In the second call of a shard: returns `result`, of x / T, with the sum over all classes.
  Exponentials over_all_classes(Exponentials result, double T, int lse_row) const {
    if (!shard_lse) return result;
    result.log2_sum = result.log2_norm(shard_lse[lse_row * call.rows + row], T);
    result.sum = __builtin_exp2(result.log2_sum);
    return result;
  }

  bool has_label() const { return label >= 0 && label < classes; }

  // Calls body(column, count) for groups of F::columns columns; the last may have fewer.
  template <class Body>
  INLINE void over_groups(Body body) const {
    int64_t column = 0;
    for (; column + F::columns <= classes; column += F::columns) body(column, int64_t(F::columns));
    if (column < classes) body(column, classes - column);
  }

  static INLINE Pair<Real> load_group(const Element* from, int64_t count) {
    if (count == F::columns) return F::load_pair(from);
    Element padded[F::columns];
    for (Element& element : padded) element = F::minus_infinity;
    memcpy(padded, from, count * sizeof *from);
    return F::load_pair(padded);
  }

  static INLINE void store_group(Element* to, Pair<Real> pair, int64_t count, bool streaming) {
    if (count == F::columns) return F::store_pair(to, pair, streaming);
    Element padded[F::columns];
    F::store_pair(padded, pair, false);
    memcpy(to, padded, count * sizeof *to);
  }

  const Element* student_row() const { return static_cast<const Element*>(call.logits) + row * call.logits_stride; }
  const Element* teacher_row(int j) const {
    return static_cast<const Element*>(call.teacher_logits[j]) + row * call.teacher_strides[j];
  }

  Exponentials exponentials(const Element* x, double c, int slot, const Exponentials* student = nullptr) const {
    Exponentials result{x, scratch + slot * scratch_stride(classes), Real(c), 0, 0, 0, 0};
    fill_in(result, kEstimateColumns < classes ? kEstimateColumns : classes, student);
    if (!(result.sum < kLargestSum)) fill_in(result, classes, student);
    result.log2_sum = __builtin_log2(result.sum);
    return result;
  }

  void fill_in(Exponentials& result, int64_t estimate_columns, const Exponentials* student) const {
    const Real most = largest(result.x, estimate_columns);
    // In a shard the logits of all classes may be -inf.
    result.offset = estimate_columns == classes && most == -Real(__builtin_inff()) ? 0 : -result.c * most;
    student ? pass<true>(result, student) : pass<false>(result, nullptr);
  }

  template <bool has_gap>
  void pass(Exponentials& result, const Exponentials* student) const {
    const Exponentials local = result;  // a copy, so that the compiler knows that no store changes it
    const Exponentials beside = has_gap ? *student : result;
    Sum<Real> sum, gap;
    over_groups([&](int64_t column, int64_t count) __attribute__((always_inline)) {
      __builtin_prefetch(reinterpret_cast<const char*>(local.x + column) + kPrefetchBytes, 0, 2);
      if (sizeof(Element) * F::columns > 64)
        __builtin_prefetch(reinterpret_cast<const char*>(local.x + column) + kPrefetchBytes + 64, 0, 2);
      const Pair<Real> y = local.exponents(load_group(local.x + column, count));
      const Pair<Real> e = {exp2<F::fast>(y.a), exp2<F::fast>(y.b)};
      store(local.e + column, e.a);
      store(local.e + column + kLanes<Real>, e.b);
      sum.a += e.a;
      sum.b += e.b;
      if (has_gap) {
        const Pair<Real> z = beside.exponents(load_group(beside.x + column, count));
        gap.a = e.a > 0 ? gap.a + e.a * (y.a - z.a) : gap.a;  // 0 * inf is NaN
        gap.b = e.b > 0 ? gap.b + e.b * (y.b - z.b) : gap.b;
      }
      if (column % kFlushColumns == 0) {
        sum.flush();
        if (has_gap) gap.flush();
      }
    });
    sum.flush();
    gap.flush();
    result.sum = sum.total;
    result.gap = gap.total;
  }

  Real largest(const Element* x, int64_t count) const {
    V most = fill(Real(-__builtin_inff()));
    for (int64_t column = 0; column < count; column += F::columns) {
      const int64_t left = count - column;
      const Pair<Real> pair = load_group(x + column, left < F::columns ? left : int64_t(F::columns));
      most = pair.a > most ? pair.a : most;
      most = pair.b > most ? pair.b : most;
    }
    Real result = most[0];
    for (int lane = 1; lane < kLanes<Real>; ++lane) result = most[lane] > result ? most[lane] : result;
    return result;
  }

  double log2_norm_of(const Exponentials& teacher, int j) const {
    if (shard_lse) return teacher.log2_norm(shard_lse[(2 + j) * call.rows + row], call.temperature);
    if (!call.teacher_lse) return teacher.log2_sum;
    return teacher.log2_norm(static_cast<const Real*>(call.teacher_lse)[j * call.rows + row], call.temperature);
  }

  Real weight_of(int64_t some_class) const { return class_weight ? class_weight[some_class] : 1; }

  double target_of_label() const {
    const double kept = 1 - call.label_smoothing + call.label_smoothing / call.all_classes;
    return kept * weight_of(call.target[row]);
  }

  // Sum of the class weights of the other shards.
  double weights_of_other_shards() const {
    const int64_t after = call.first_class + classes;
    if (!class_weight) return call.all_classes - classes;
    double total = 0;
    for (int64_t k = 0; k < call.first_class; ++k) total += class_weight[k];
    for (int64_t k = after; k < call.all_classes; ++k) total += class_weight[k];
    return total;
  }

  CrossEntropy cross_entropy_of(const Exponentials& student) const {
    const double target = (1 - call.label_smoothing) * weight_of(call.target[row]);
    // A class whose target is 0 adds 0, even if its logit is -inf.
    double value = target && has_label() ? target * (student.log2_sum - student.exponent_at(label)) : 0, smooth = 0;
    if (call.label_smoothing) {
      Sum<Real> distance, weights;
      const V log2_sum = fill(Real(student.log2_sum));
      over_groups([&](int64_t column, int64_t count) __attribute__((always_inline)) {
        const Pair<Real> y = student.exponents(load_group(student.x + column, count));
        const Pair<Real> w = class_weights(column, count);
        distance.a += w.a > 0 ? w.a * (log2_sum - y.a) : V{};
        distance.b += w.b > 0 ? w.b * (log2_sum - y.b) : V{};
        weights.a += w.a;
        weights.b += w.b;
        distance.flush();
        weights.flush();
      });
      value += call.label_smoothing / call.all_classes * distance.total;
      smooth = call.label_smoothing / call.all_classes * (weights.total + weights_of_other_shards());
    }
    return {value < 0 ? 0 : kLn2 * value, target + smooth};  // only rounding makes it negative
  }

  // Loads class weights, with zeros beyond `count`.
  INLINE Pair<Real> class_weights(int64_t column, int64_t count) const {
    Real padded[F::columns] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = weight_of(call.first_class + column + i);
    return F::in_order(padded);
  }

  // Writes the gradient, if it is wanted. With several teachers, returns the sum of m * (log2(m) - y) for their mixture
  // m and the tempered student's y.
  double mix(const Exponentials& tempered, const Factors& factors, double label_gradient) const {
    const bool plain = factors.tempered == 0 && factors.smoothing == 0;
    return plain ? mix<true>(tempered, factors, label_gradient) : mix<false>(tempered, factors, label_gradient);
  }

  template <bool plain>
  double mix(const Exponentials& tempered, const Factors& factors, double label_gradient) const {
    const Exponentials local = tempered;
    const V student = fill(Real(factors.student)), tempered_factor = fill(Real(factors.tempered));
    const V mixture = fill(Real(factors.mixture)), smoothing = fill(Real(factors.smoothing));
    const int64_t stride = scratch_stride(classes);
    const int teachers = this->teachers;
    const Real *const scratch = this->scratch, *const shares = this->shares;
    Element* const gradient = this->gradient;
    const bool streaming = this->streaming;
    const int64_t label = this->label;
    Element label_element;
    store_group(&label_element, {fill(Real(label_gradient)), V{}}, 1, false);
    Sum<Real> total;
    over_groups([&](int64_t column, int64_t count) __attribute__((always_inline)) {
      const Real* e = scratch + column;
      Pair<Real> g = {student * load<V>(e), student * load<V>(e + kLanes<Real>)};
      if (teachers) {
        Pair<Real> m{};
        for (int j = 0; j < teachers; ++j) {
          e += stride;
          m.a += fill(shares[j]) * load<V>(e);
          m.b += fill(shares[j]) * load<V>(e + kLanes<Real>);
        }
        if (teachers > 1) {
          const Pair<Real> y = local.exponents(load_group(local.x + column, count));
          total.a = m.a > 0 ? total.a + m.a * (log2<F::fast>(m.a) - y.a) : total.a;
          total.b = m.b > 0 ? total.b + m.b * (log2<F::fast>(m.b) - y.b) : total.b;
          if (column % kFlushColumns == 0) total.flush();
        }
        g.a -= mixture * m.a;
        g.b -= mixture * m.b;
      }
      if (!plain && factors.tempered != 0) {
        e += stride;
        g.a += tempered_factor * load<V>(e);
        g.b += tempered_factor * load<V>(e + kLanes<Real>);
      }
      if (!plain && factors.smoothing != 0) {
        const Pair<Real> w = class_weights(column, count);
        g.a -= smoothing * w.a;
        g.b -= smoothing * w.b;
      }
      if (!gradient) return;
      if (label < column || label >= column + count) return store_group(gradient + column, g, count, streaming);
      Element group[F::columns];
      F::store_pair(group, g, false);
      group[label - column] = label_element;
      memcpy(gradient + column, group, count * sizeof *group);
    });
    total.flush();
    return total.total;
  }

  void write(double loss, double cross_entropy, double divergence, double lse) const {
    Real* const parts = static_cast<Real*>(call.parts);
    static_cast<Real*>(call.losses)[row] = loss;
    parts[row] = cross_entropy;
    parts[call.rows + row] = divergence;
    parts[2 * call.rows + row] = lse;
  }
};

}  // namespace

void HPCDISTILL_ROW(const HpcdistillRows& call, int64_t row, void* scratch, bool streaming) {
  switch (call.dtype) {
    case HPCDISTILL_F32:
      return Row<Full<float>>(call, row, scratch, streaming).run();
    case HPCDISTILL_BF16:
      return Row<Bfloat16>(call, row, scratch, streaming).run();
    case HPCDISTILL_F16:
      return Row<Float16>(call, row, scratch, streaming).run();
    case HPCDISTILL_F64:
      return Row<Full<double>>(call, row, scratch, streaming).run();
  }
}
