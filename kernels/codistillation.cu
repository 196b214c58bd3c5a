// The fused loss on GPUs with thread-block clusters (sm_90 and later), for rows too long for one block. A cluster keeps
// a row of the student and of its teachers in the shared memory of its blocks, so that each byte of the inputs is read
// from global memory once, and the gradient is written once.
#include <algorithm>
#include <climits>
#include <map>
#include <mutex>
#include <tuple>

#include "codistillation.h"
#include "cuda_row.cuh"

namespace {

constexpr int kBlocksPerMultiprocessor = 3;  // one computes, one loads, one starts or ends

// With a bound of 1 block the compiler does not spill registers to make room for a second block.
template <class Format, int TEACHERS, bool TEMPERED>
__global__ void __launch_bounds__(kMostThreads<RealOf<Format>>, 1)
    codistillation(const __grid_constant__ Call<Format> call) {
  Row<Format, TEACHERS, TEMPERED>(call, dynamic_shared_memory()).run();
}

struct Device {
  int capability, block_bytes, bytes, reserved_bytes;  // shared memory: per block, in total, reserved per block
};

cudaError_t query(int ordinal, Device* device) {
  cudaError_t error = cudaSuccess;
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, ordinal);
  };
  get(&device->capability, cudaDevAttrComputeCapabilityMajor);
  get(&device->block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(&device->bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  get(&device->reserved_bytes, cudaDevAttrReservedSharedMemoryPerBlock);
  return error;
}

template <class Format>
using Kernel = void (*)(Call<Format>);

template <class Format>
Kernel<Format> kernel_for(int teachers, bool tempered) {
  if (teachers == 0) return codistillation<Format, 0, false>;
  if (teachers == 1) return tempered ? codistillation<Format, 1, true> : codistillation<Format, 1, false>;
  return tempered ? codistillation<Format, kMostTeachers, true> : codistillation<Format, kMostTeachers, false>;
}

// Launch of one cluster per row: its shape, and the number of blocks of that shape that share a multiprocessor.
struct Launch {
  int blocks = 0, threads = 0, vectors = 0, resident = 0;
  int64_t bytes = 0;  // of shared memory per block

  // Calls `use` with the configuration for `rows` rows.
  template <class Use>
  cudaError_t configured(int64_t rows, cudaStream_t stream, Use use) const {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {1, static_cast<unsigned>(blocks), 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(rows), static_cast<unsigned>(blocks));
    config.blockDim = threads;
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    return use(config);
  }
};

// Sets `best` to the smallest cluster of which `kBlocksPerMultiprocessor` blocks share a multiprocessor; if there is
// none, to the largest that runs; if none runs, to 0 blocks.
template <class Format>
cudaError_t find_launch(int teachers, int64_t classes, Kernel<Format> kernel, int ordinal, Launch* best) {
  constexpr int W = kWidth<Format>, most_threads = kMostThreads<RealOf<Format>>;
  Device device;
  cudaError_t error = query(ordinal, &device);
  if (error == cudaSuccess && device.capability < 9) error = cudaErrorNoKernelImageForDevice;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, attribute, value);
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, device.block_bytes);
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  *best = Launch{};
  for (int blocks = 1; blocks <= kMostBlocks && best->resident < kBlocksPerMultiprocessor; blocks *= 2) {
    const int64_t vectors = ((classes + 2 * W - 2) / W + blocks - 1) / blocks;  // a row may begin inside a vector
    Launch launch;
    launch.bytes = sizeof(Shared<RealOf<Format>>) + (1 + teachers) * vectors * sizeof(uint4);
    if (launch.bytes > device.block_bytes) continue;
    launch.blocks = blocks;
    launch.vectors = static_cast<int>(vectors);
    launch.resident = device.bytes / static_cast<int>(launch.bytes + device.reserved_bytes);
    launch.threads = std::max(most_threads / launch.resident / kWarp, 1) * kWarp;
    launch.threads = std::min(launch.threads, (launch.vectors + kWarp - 1) / kWarp * kWarp);
    int clusters = 0;  // that fit on the device; perhaps none if they have more blocks than is portable
    const cudaError_t refused = launch.configured(1, nullptr, [&](const cudaLaunchConfig_t& config) {
      return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
    });
    if (refused == cudaSuccess && clusters > 0) *best = launch;
  }
  cudaGetLastError();  // clears the errors of clusters that do not run
  return cudaSuccess;
}

// Returns the launch of find_launch, which asks the runtime for each device and shape only once.
template <class Format>
cudaError_t launch_for(int teachers, int64_t classes, Kernel<Format> kernel, int ordinal, Launch* launch) {
  using Key = std::tuple<int, const void*, int, int64_t>;
  static std::mutex mutex;
  static std::map<Key, Launch> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const Key key(ordinal, reinterpret_cast<const void*>(kernel), teachers, classes);
  const auto found = known.find(key);
  if (found != known.end()) {
    *launch = found->second;
    return cudaSuccess;
  }
  const cudaError_t error = find_launch<Format>(teachers, classes, kernel, ordinal, launch);
  if (error == cudaSuccess) known[key] = *launch;
  return error;
}

template <class Format>
Call<Format> call_of(const HpcdistillRows& rows) {
  using Real = RealOf<Format>;
  Call<Format> call{};
  call.rows = rows.rows;
  call.classes = static_cast<int>(rows.classes);
  call.teachers = rows.teachers;
  call.logits[0] = static_cast<const Format*>(rows.logits);
  call.strides[0] = rows.logits_stride;
  for (int j = 0; j < rows.teachers; ++j) {
    call.logits[j + 1] = static_cast<const Format*>(rows.teacher_logits[j]);
    call.strides[j + 1] = rows.teacher_strides[j];
    call.mixture[j] = static_cast<Real>(rows.mixture[j]);
  }
  call.teacher_lse = static_cast<const Real*>(rows.teacher_lse);
  call.class_weight = static_cast<const Real*>(rows.class_weight);
  call.scales = static_cast<const Real*>(rows.scales);
  call.target = rows.target;
  call.temperature = static_cast<Real>(rows.teachers ? rows.temperature : 1);
  call.label_smoothing = static_cast<Real>(rows.label_smoothing);
  call.smooth = static_cast<Real>(rows.label_smoothing / static_cast<double>(rows.classes));
  call.sharpness = static_cast<Real>(kLog2E / rows.temperature);
  call.ignore_index = rows.ignore_index;
  call.losses = static_cast<Real*>(rows.losses);
  call.parts = static_cast<Real*>(rows.parts);
  call.gradient = static_cast<Format*>(rows.gradient);
  call.gradient_stride = rows.gradient_stride;
  return call;
}

template <class Format>
cudaError_t enqueue(const HpcdistillRows& rows, int ordinal, cudaStream_t stream) {
  Call<Format> call = call_of<Format>(rows);
  const Kernel<Format> kernel = kernel_for<Format>(call.teachers, call.temperature != 1);
  Launch launch;
  const cudaError_t error = launch_for<Format>(call.teachers, rows.classes, kernel, ordinal, &launch);
  if (error != cudaSuccess) return error;
  if (launch.blocks == 0 || rows.rows > INT_MAX) return cudaErrorInvalidConfiguration;
  call.vectors = launch.vectors;
  return launch.configured(rows.rows, stream,
                           [&](const cudaLaunchConfig_t& config) { return cudaLaunchKernelEx(&config, kernel, call); });
}

cudaError_t enqueue(const HpcdistillRows& rows, int ordinal, cudaStream_t stream) {
  if (rows.rows == 0) return cudaSuccess;
  if (rows.teachers > kMostTeachers) return cudaErrorInvalidValue;
  const cudaError_t error = cudaSetDevice(ordinal);
  if (error != cudaSuccess) return error;
  switch (rows.dtype) {
    case HPCDISTILL_F32:
      return enqueue<float>(rows, ordinal, stream);
    case HPCDISTILL_BF16:
      return enqueue<__nv_bfloat16>(rows, ordinal, stream);
    case HPCDISTILL_F16:
      return enqueue<__half>(rows, ordinal, stream);
    case HPCDISTILL_F64:
      return enqueue<double>(rows, ordinal, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

int hpcdistill_codistillation_cuda(const HpcdistillRows* rows, int device, void* stream) {
  const cudaError_t error = enqueue(*rows, device, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) cudaGetLastError();  // clears the error, which is returned here
  return error;
}

const char* hpcdistill_cuda_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
