// What stands around a measurement: values that can be checked, an end to endless waits, launches, times, lines of JSON.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

enum class Fault : unsigned { none, timeout, mismatch };

// What a kernel leaves behind before it traps. A trap ends the whole grid: nobody goes on waiting for a block that failed.
struct Failure {
  Fault fault;
  unsigned step, block, thread, expected, got;
};

__device__ Failure* failure;  // host memory, which outlives the trap

__device__ inline void fail(Fault fault, unsigned step, unsigned expected = 0, unsigned got = 0) {
  *failure = {fault, step, blockIdx.x, threadIdx.x, expected, got};
  __threadfence_system();
  __trap();
}

// What is handed over in step t at index i is word(t, i): a receiver can tell a lost, late or stale value.
__host__ __device__ inline unsigned word(unsigned step, unsigned index) {
  return ((step + 1) * 2654435761u) ^ (index * 2246822519u);
}

__host__ __device__ inline uint4 words(unsigned step, unsigned vector) {
  const unsigned i = 4 * vector;
  return {word(step, i), word(step, i + 1), word(step, i + 2), word(step, i + 3)};
}

// 12 bytes of data, and what says that they are of this step.
__host__ __device__ inline uint4 tagged(unsigned step, unsigned vector) {
  uint4 v = words(step, vector);
  v.w = step + 1;
  return v;
}

__device__ inline void expect(unsigned step, unsigned expected, unsigned got) {
  if (got != expected) fail(Fault::mismatch, step, expected, got);
}

__device__ inline void expect(unsigned step, uint4 expected, uint4 got) {
  expect(step, expected.x, got.x);
  expect(step, expected.y, got.y);
  expect(step, expected.z, got.z);
  expect(step, expected.w, got.w);
}

// Makes a mistake in a protocol an error instead of a hang: every waiting loop calls check(). That adds some 20 cycles to a
// poll in vain, which takes hundreds through L2 and tens in shared memory. (Reading the clock less often adds no less: the
// compiler moves the read ahead of the condition.)
class Watchdog {
 public:
  __device__ Watchdog() { start_ = clock64(); }
  __device__ void check(unsigned step) const {
    if (clock64() - start_ > kCycles) fail(Fault::timeout, step);
  }

 private:
  static constexpr long long kCycles = 4'000'000'000;  // of one launch: about 2 s
  long long start_;
};

// Set once by open_gpu().
struct Gpu {
  cudaDeviceProp properties;
  cudaStream_t stream;
  cudaEvent_t start, stop;
  Failure* failure;

  unsigned blocks() const { return properties.multiProcessorCount; }
  bool clusters() const { return properties.major >= 9; }
  // Shared memory of which only one block fits on a multiprocessor, like the kernels that are planned.
  size_t exclusive() const { return properties.sharedMemPerMultiprocessor / 2 + 1024; }
};
inline Gpu gpu;

[[noreturn]] inline void die(const std::string& what) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  if (gpu.failure && gpu.failure->fault != Fault::none) {
    const Failure& f = *gpu.failure;
    std::fprintf(stderr, "block %u, thread %u, step %u: ", f.block, f.thread, f.step);
    if (f.fault == Fault::timeout) {
      std::fprintf(stderr, "waited too long for another block\n");
    } else {
      std::fprintf(stderr, "expected %08x, got %08x\n", f.expected, f.got);
    }
  }
  std::fflush(nullptr);
  std::_Exit(1);  // no destructors: they would wait for a device that may hang
}

inline void check(cudaError_t status, const char* call, int line) {
  if (status != cudaSuccess) {
    die(std::string(call) + " at line " + std::to_string(line) + ": " + cudaGetErrorString(status));
  }
}
#define CHECK(call) check(call, #call, __LINE__)

inline void open_gpu() {
  CHECK(cudaSetDevice(0));
  CHECK(cudaGetDeviceProperties(&gpu.properties, 0));
  CHECK(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking));
  CHECK(cudaEventCreate(&gpu.start));
  CHECK(cudaEventCreate(&gpu.stop));
  CHECK(cudaHostAlloc(&gpu.failure, sizeof(Failure), cudaHostAllocMapped));
  *gpu.failure = {};
  Failure* mapped;
  CHECK(cudaHostGetDevicePointer(&mapped, gpu.failure, 0));
  CHECK(cudaMemcpyToSymbol(failure, &mapped, sizeof(mapped)));
}

// Waits with a limit of its own: a barrier in hardware has no loop that a watchdog could sit in.
inline void wait_for(cudaEvent_t event) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (;;) {
    const cudaError_t status = cudaEventQuery(event);
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) CHECK(status);
    if (std::chrono::steady_clock::now() > limit) die("a kernel has been running for 20 s: it hangs");
  }
}

// Milliseconds that the stream takes over what `enqueue` puts into it.
template <class Enqueue>
double timed(Enqueue enqueue) {
  CHECK(cudaEventRecord(gpu.start, gpu.stream));
  enqueue();
  CHECK(cudaEventRecord(gpu.stop, gpu.stream));
  wait_for(gpu.stop);
  float milliseconds;
  CHECK(cudaEventElapsedTime(&milliseconds, gpu.start, gpu.stop));
  return milliseconds;
}

struct Shape {
  unsigned blocks, threads;
  size_t shared = 0;
  unsigned cluster = 1;
  bool cooperative = false;
};

// A shape as the runtime takes it; the kernel's own limits are raised to it.
template <class Kernel>
class Launch {
 public:
  Launch(Kernel* kernel, Shape shape) : shape_(shape), kernel_(kernel) {
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared)));
    config_.gridDim = shape.blocks;
    config_.blockDim = shape.threads;
    config_.dynamicSmemBytes = shape.shared;
    config_.stream = gpu.stream;
    config_.attrs = attributes_;
    if (shape.cluster > 1) {
      // More than 8 blocks are not portable, and must be asked for.
      CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, shape.cluster > 8));
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {shape.cluster, 1, 1};
    }
    if (shape.cooperative) {
      cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
  }
  Launch(const Launch&) = delete;  // config_ points into this object

  // Blocks that the device can hold at a time.
  unsigned capacity() const {
    int count = 0;
    if (shape_.cluster > 1) {
      const cudaError_t status = cudaOccupancyMaxActiveClusters(&count, kernel_, &config_);
      if (status == cudaErrorInvalidClusterSize) {
        cudaGetLastError();  // an answer, not an error
        return 0;
      }
      CHECK(status);
      return count * shape_.cluster;
    }
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel_, shape_.threads, shape_.shared));
    return count * gpu.blocks();
  }

  template <class... Args>
  double run(Args... args) const {
    // Blocks that wait for each other must all be running.
    if ((shape_.cooperative || shape_.cluster > 1) && capacity() < shape_.blocks) {
      die("the device holds " + std::to_string(capacity()) + " blocks of " + std::to_string(shape_.blocks));
    }
    return timed([&] { CHECK(cudaLaunchKernelEx(&config_, kernel_, args...)); });
  }

 private:
  Shape shape_;
  Kernel* kernel_;
  cudaLaunchAttribute attributes_[2] = {};
  cudaLaunchConfig_t config_ = {};
};

// Device memory of `count` elements, for as long as the object lives.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : bytes_(count * sizeof(T)) { CHECK(cudaMalloc(&data_, bytes_)); }
  ~Buffer() { CHECK(cudaFree(data_)); }
  Buffer(const Buffer&) = delete;
  void fill(int byte) { CHECK(cudaMemsetAsync(data_, byte, bytes_, gpu.stream)); }
  T* data() { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

// One line of JSON: what was measured, how, and median, min and max of its repeats.
class Row {
 public:
  explicit Row(const std::string& name) : text_("{\"name\": \"" + name + '"') {}
  Row& set(const std::string& key, const std::string& value) { return raw(key, '"' + value + '"'); }
  Row& set(const std::string& key, long long value) { return raw(key, std::to_string(value)); }

  void print() const {
    std::printf("%s}\n", text_.c_str());
    std::fflush(stdout);
  }
  void print(const char* unit, std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    set("unit", unit).raw("median", number((values[(n - 1) / 2] + values[n / 2]) / 2));
    raw("min", number(values.front())).raw("max", number(values.back())).set("repeats", n).print();
  }
  void skip(const char* why) { set("skipped", why).print(); }

 private:
  static std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.6g", value);
    return text;
  }
  Row& raw(const std::string& key, const std::string& value) {
    text_ += ", \"" + key + "\": " + value;
    return *this;
  }
  std::string text_;
};

// The results of `repeats` calls; one call before them warms up.
template <class Once>
std::vector<double> repeat(int repeats, Once once) {
  std::vector<double> values;
  once(0);
  for (int r = 0; r < repeats; ++r) values.push_back(once(r));
  return values;
}
