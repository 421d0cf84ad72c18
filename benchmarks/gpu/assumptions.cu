// Measures what the plan for persistent recurrent kernels assumes about a GPU: how fast its blocks can hand values to each
// other, what a launch costs, and how fast memory is. Prints a line of JSON for each measurement and ends with an error
// where a value is wrong or late. assumptions.py builds and runs it:
//
//     assumptions [STEPS [REPEATS]]
#include "exchange.cuh"

namespace {

struct Options {
  unsigned steps = 5000;  // in one launch: what a launch itself costs does not show in a step
  int repeats = 9;        // of each launch
};

template <class T>
T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// ---- The clock: first and last, for all that counts cycles depends on it.

__global__ void keep_busy(unsigned long long nanoseconds, double* megahertz) {
  unsigned long long start, now;
  const long long cycles = clock64();
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - start < nanoseconds);
  if (blockIdx.x == 0 && threadIdx.x == 0) *megahertz = (clock64() - cycles) * 1e3 / (now - start);
}

void measure_clock(const char* when, unsigned long long nanoseconds) {
  Buffer<double> megahertz(1);
  Launch(keep_busy, {gpu.blocks(), kThreads}).run(nanoseconds, megahertz.data());
  double value;
  CHECK(cudaMemcpy(&value, megahertz.data(), sizeof(value), cudaMemcpyDeviceToHost));
  Row("sm_clock").set("when", when).print("MHz", {value});
}

// ---- Launches.

// One writer, in stream order: the count says that every launch ran.
__global__ void count_up(unsigned* count) {
  if (blockIdx.x == 0 && threadIdx.x == 0) ++*count;
}

void measure_launch(const Options& options) {
  constexpr unsigned kLaunches = 1000;
  Buffer<unsigned> count(1);
  const auto enqueue = [&] {
    for (unsigned i = 0; i < kLaunches; ++i) {
      count_up<<<gpu.blocks(), kThreads, 0, gpu.stream>>>(count.data());
      CHECK(cudaGetLastError());
    }
  };
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  CHECK(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeGlobal));
  enqueue();
  CHECK(cudaStreamEndCapture(gpu.stream, &graph));
  CHECK(cudaGraphInstantiate(&replay, graph, 0));

  const auto microseconds = [&](auto run) {
    return repeat(options.repeats, [&](int) {
      count.fill(0);
      const double milliseconds = timed(run);
      unsigned launches;
      CHECK(cudaMemcpy(&launches, count.data(), sizeof(launches), cudaMemcpyDeviceToHost));
      if (launches != kLaunches) die(std::to_string(launches) + " launches ran of " + std::to_string(kLaunches));
      return milliseconds * 1e3 / kLaunches;
    });
  };
  Row("launch").set("how", "stream").print("us", microseconds(enqueue));
  Row("launch").set("how", "graph").print("us", microseconds([&] { CHECK(cudaGraphLaunch(replay, gpu.stream)); }));
  CHECK(cudaGraphExecDestroy(replay));
  CHECK(cudaGraphDestroy(graph));
}

// ---- Memory.

__global__ void write_words(uint4* to, unsigned vectors) {
  for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < vectors; v += gridDim.x * blockDim.x)
    to[v] = words(0, v);
}

constexpr unsigned kLoads = 4;  // in flight in each thread

__global__ void copy_words(uint4* to, const uint4* from, unsigned vectors) {
  const unsigned stride = gridDim.x * blockDim.x;
  unsigned v = blockIdx.x * blockDim.x + threadIdx.x;
  for (; v + (kLoads - 1) * stride < vectors; v += kLoads * stride) {
    uint4 x[kLoads];
#pragma unroll
    for (unsigned k = 0; k < kLoads; ++k) x[k] = from[v + k * stride];
#pragma unroll
    for (unsigned k = 0; k < kLoads; ++k) to[v + k * stride] = x[k];
  }
  for (; v < vectors; v += stride) to[v] = from[v];
}

__global__ void expect_words(const uint4* data, unsigned vectors) {
  const unsigned stride = gridDim.x * blockDim.x;
  for (unsigned v = blockIdx.x * blockDim.x + threadIdx.x; v < vectors; v += stride) expect(0, words(0, v), data[v]);
}

// Reads `count` vectors, which is the data many times over. The number of its vectors is a power of two.
__global__ void sum_words(const uint4* data, unsigned vectors, unsigned count, unsigned* sum) {
  const unsigned stride = gridDim.x * blockDim.x;
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x, mine = 0;
  const auto add = [&](uint4 x) { mine += x.x + x.y + x.z + x.w; };
  for (; i + (kLoads - 1) * stride < count; i += kLoads * stride) {
    uint4 x[kLoads];
#pragma unroll
    for (unsigned k = 0; k < kLoads; ++k) x[k] = __ldcg(data + ((i + k * stride) & (vectors - 1)));
#pragma unroll
    for (unsigned k = 0; k < kLoads; ++k) add(x[k]);
  }
  for (; i < count; i += stride) add(__ldcg(data + (i & (vectors - 1))));
  atomicAdd(sum, mine);  // modulo 2^32, so in any order
}

void measure_hbm(const Options& options) {
  constexpr size_t kBytes = size_t{2} << 30;
  constexpr unsigned kVectors = kBytes / sizeof(uint4);
  Buffer<uint4> from(kVectors), to(kVectors);
  const Shape wide{gpu.blocks() * 4, 512};
  Launch(write_words, wide).run(from.data(), kVectors);
  const auto rates = [&](auto copy) {
    to.fill(0xee);
    const std::vector<double> values = repeat(options.repeats, [&](int) { return 2 * kBytes / (copy() * 1e9); });
    Launch(expect_words, wide).run(to.data(), kVectors);
    return values;
  };
  const Launch kernel(copy_words, wide);
  const auto by_kernel = [&] { return kernel.run(to.data(), from.data(), kVectors); };
  const auto by_memcpy = [&] {
    return timed([&] { CHECK(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDefault, gpu.stream)); });
  };
  Row("hbm_copy").set("how", "kernel").print("TB/s", rates(by_kernel));
  Row("hbm_copy").set("how", "memcpy").print("TB/s", rates(by_memcpy));
}

void measure_l2(const Options& options) {
  constexpr unsigned kPasses = 50;
  for (const unsigned megabytes : {8, 16, 32}) {
    const unsigned vectors = (megabytes << 20) / sizeof(uint4);
    unsigned expected = 0;
    for (unsigned i = 0; i < 4 * vectors; ++i) expected += word(0, i) * kPasses;
    Buffer<uint4> data(vectors);
    Buffer<unsigned> sum(1);
    Launch(write_words, {gpu.blocks(), 512}).run(data.data(), vectors);
    const Launch launch(sum_words, {gpu.blocks() * 4, 512});
    const auto rate = [&](int) {
      sum.fill(0);
      const double milliseconds = launch.run(data.data(), vectors, kPasses * vectors, sum.data());
      unsigned got;
      CHECK(cudaMemcpy(&got, sum.data(), sizeof(got), cudaMemcpyDeviceToHost));
      if (got != expected) die("the sum of what was read from L2 is wrong");
      return vectors * sizeof(uint4) * kPasses / (milliseconds * 1e9);
    };
    Row("l2_read").set("bytes", vectors * sizeof(uint4)).print("TB/s", repeat(options.repeats, rate));
  }
}

// ---- Across the grid, through L2.

Shape all_blocks(unsigned threads = kThreads, size_t shared = 0) {
  return {gpu.blocks(), threads, std::max(shared, gpu.exclusive()), 1, true};
}

const char* name(Hop hop) {
  return hop == Hop::flag ? "flag" : hop == Hop::data_and_flag ? "data and flag" : "data";
}

template <Hop hop>
void measure_hop_grid(const Options& options) {
  constexpr unsigned kLines = 64;  // where the flags lie matters as much as which multiprocessors use them
  Buffer<unsigned> flags(64 * kLines);
  Buffer<uint4> data(16 * kLines);
  const Launch launch(hop_grid<hop>, all_blocks());
  Row row("l2_hop");
  const auto nanoseconds = [&](int r) {
    const unsigned partner = 1 + r * 37 % (gpu.blocks() - 1), line = r * 11 % kLines;
    flags.fill(0);
    data.fill(0xee);
    return launch.run(flags.data() + 64 * line, data.data() + 16 * line, partner, options.steps) * 1e6 /
           (2 * options.steps);
  };
  row.set("what", name(hop)).print("ns", repeat(4 * options.repeats, nanoseconds));
}

template <Barrier kind>
void measure_barrier_grid(const Options& options, unsigned stride) {
  Buffer<unsigned> flags(gpu.blocks() * stride), data(2 * gpu.blocks());
  const auto nanoseconds = [&](auto kernel) {
    flags.fill(0);
    data.fill(0xee);
    return Launch(kernel, all_blocks()).run(flags.data(), stride, data.data(), options.steps) * 1e6 / options.steps;
  };
  nanoseconds(barrier_grid<kind, true>);
  Row row(kind == Barrier::grid_sync ? "grid_sync" : "flag_barrier");
  row.set("blocks", gpu.blocks());
  if (kind == Barrier::flags) row.set("flag_stride_bytes", stride * sizeof(unsigned));
  row.print("ns", repeat(options.repeats, [&](int) { return nanoseconds(barrier_grid<kind, false>); }));
}

// ---- h, of every size of interest: a callback for each.

template <class Use>
void for_each_h(Use use) {
  for (const char* dtype : {"bf16", "fp32"}) {
    for (const unsigned H : {256, 512, 768, 1024}) {
      for (const unsigned N : {1, 8, 16, 20}) {
        const unsigned bytes = N * H * (dtype[0] == 'b' ? 2 : 4);
        use(bytes, [=](const char* name) {
          return Row(name).set("dtype", dtype).set("H", H).set("N", N).set("bytes", bytes);
        });
      }
    }
  }
}

template <bool Tagged>
void measure_gather_grid(const Options& options) {
  for_each_h([&](unsigned bytes, auto row) {
    const unsigned slice = ceil_div(ceil_div(bytes, gpu.blocks()), Tagged ? 12u : 16u);
    const unsigned total = slice * gpu.blocks();
    Buffer<uint4> h(2 * total);
    Buffer<unsigned> flags(gpu.blocks());
    const auto nanoseconds = [&](auto kernel) {
      h.fill(0xee);
      flags.fill(0);
      const Launch launch(kernel, all_blocks(kGatherThreads, total * sizeof(uint4)));
      return launch.run(h.data(), flags.data(), slice, options.steps) * 1e6 / options.steps;
    };
    nanoseconds(gather_grid<Tagged, true>);
    row("gather_grid")
        .set("how", Tagged ? "tags" : "flags")
        .set("blocks", gpu.blocks())
        .print("ns", repeat(options.repeats, [&](int) { return nanoseconds(gather_grid<Tagged, false>); }));
  });
}

// ---- Within a cluster.

// As many clusters as asked for, with a multiprocessor for each block.
Shape clusters_of(unsigned size, unsigned count = 1, size_t shared = 0) {
  return {size * count, kThreads, std::max(shared, gpu.exclusive()), size};
}

template <class Kernel>
unsigned clusters_at_a_time(Kernel* kernel, unsigned size, size_t shared = 0) {
  return Launch(kernel, clusters_of(size, gpu.blocks() / size, shared)).capacity() / size;
}

template <Hop hop>
void measure_hop_cluster(const Options& options, unsigned size) {
  const Launch launch(hop_cluster<hop>, clusters_of(size));
  Row row("cluster_hop");
  const auto nanoseconds = [&](int r) {
    return launch.run(1 + r % (size - 1), options.steps) * 1e6 / (2 * options.steps);
  };
  row.set("cluster", size).set("what", name(hop)).print("ns", repeat(2 * options.repeats, nanoseconds));
}

template <bool Ordered>
void measure_barrier_cluster(const Options& options, unsigned size) {
  const Shape shape = clusters_of(size);
  if (Ordered) Launch(barrier_cluster<true, true>, shape).run(options.steps);
  const Launch launch(barrier_cluster<Ordered, false>, shape);
  Row row("cluster_barrier");
  row.set("cluster", size).set("order", Ordered ? "release, acquire" : "relaxed");
  row.print("ns", repeat(options.repeats, [&](int) { return launch.run(options.steps) * 1e6 / options.steps; }));
}

template <Via via>
void measure_gather_cluster(const Options& options, unsigned size) {
  for_each_h([&](unsigned bytes, auto row) {
    const unsigned slice = ceil_div(bytes, size * 16), shared = 2 * size * slice * sizeof(uint4);
    const unsigned most = clusters_at_a_time(gather_cluster<via, false>, size, shared);
    for (const unsigned count : {1u, most}) {
      const Shape shape = clusters_of(size, count, shared);
      Launch(gather_cluster<via, true>, shape).run(slice, options.steps);
      const Launch launch(gather_cluster<via, false>, shape);
      const auto nanoseconds = [&](int) { return launch.run(slice, options.steps) * 1e6 / options.steps; };
      row("gather_cluster")
          .set("how", via == Via::bulk ? "bulk" : "st.async")
          .set("cluster", size)
          .set("clusters", count)
          .print("ns", repeat(options.repeats, nanoseconds));
    }
  });
}

void measure_clusters(const Options& options) {
  for (const unsigned size : {2, 4, 8, 16}) {
    // The planner's question: how many clusters run at a time, with all the shared memory a block can have.
    const size_t shared = gpu.properties.sharedMemPerBlockOptin - 1024;
    const unsigned most = clusters_at_a_time(gather_cluster<Via::st_async, false>, size, shared);
    Row("clusters_at_a_time").set("cluster", size).set("shared_bytes", shared).print("clusters", {double(most)});
    if (most == 0) {
      Row("cluster").set("cluster", size).skip("no such cluster fits");
      continue;
    }
    measure_barrier_cluster<true>(options, size);
    measure_barrier_cluster<false>(options, size);
    measure_hop_cluster<Hop::flag>(options, size);
    measure_hop_cluster<Hop::data_and_flag>(options, size);
    measure_hop_cluster<Hop::data>(options, size);
    if (size < 8) continue;
    measure_gather_cluster<Via::st_async>(options, size);
    measure_gather_cluster<Via::bulk>(options, size);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (argc > 1) options.steps = std::max(2, std::atoi(argv[1]));
  if (argc > 2) options.repeats = std::max(1, std::atoi(argv[2]));
  open_gpu();
  Row("device")
      .set("device", gpu.properties.name)
      .set("capability", 10 * gpu.properties.major + gpu.properties.minor)
      .set("multiprocessors", gpu.blocks())
      .set("l2_bytes", gpu.properties.l2CacheSize)
      .set("shared_bytes_per_block", gpu.properties.sharedMemPerBlockOptin)
      .set("steps", options.steps)
      .print();

  measure_clock("first", 300'000'000);  // long enough for the clock to rise
  measure_launch(options);
  measure_hop_grid<Hop::flag>(options);
  measure_hop_grid<Hop::data_and_flag>(options);
  measure_hop_grid<Hop::data>(options);
  measure_barrier_grid<Barrier::grid_sync>(options, 1);
  measure_barrier_grid<Barrier::flags>(options, 1);
  measure_barrier_grid<Barrier::flags>(options, 32);
  if (gpu.clusters()) {
    measure_clusters(options);
  } else {
    Row("cluster").skip("clusters need compute capability 9.0");
  }
  measure_gather_grid<false>(options);
  measure_gather_grid<true>(options);
  measure_l2(options);
  measure_hbm(options);
  measure_clock("last", 10'000'000);
}
