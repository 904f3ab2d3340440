// CUDA's kernels on a CPU: as much of the language as `src/lm/gpu/kernels` uses, for tests without a GPU.
//
// A launch runs its blocks one after the other, and a block's threads as fibers, each up to the next barrier. Threads that
// wait for one another at different barriers end the process with a message. Shared memory is NaN when a block begins. The
// order of the threads turns from launch to launch, so that a barrier that is missing shows in what comes out.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// In functions that are static themselves, and so in one section.
#define __shared__ static __attribute__((section("emulated_shared")))
#define KERNEL static void
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulated::dynamic_shared)

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Rounded to the nearest, ties to even, as the hardware does.
struct __nv_bfloat16 { uint16_t bits; };
static inline float __bfloat162float(__nv_bfloat16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}
static inline __nv_bfloat16 __float2bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (std::isnan(x)) return {0x7fff};
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
#define __float2bfloat16_rn __float2bfloat16
struct __half { _Float16 value; };
static inline float __half2float(__half x) { return (float)x.value; }
static inline __half __float2half(float x) { return {(_Float16)x}; }
#define __float2half_rn __float2half

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace emulated {
constexpr size_t STACK = 256 << 10;
constexpr unsigned MOST = 1024;
alignas(128) static unsigned char dynamic_shared[232448];

// Threads that wait until all that are still there have come.
struct Barrier { unsigned here = 0, there = 0, turn = 0; };

struct Fiber {
  jmp_buf at;
  bool started, done;
  uint3 index;
  unsigned lane, warp;
};

static Fiber fibers[MOST];
static Barrier block, warps[MOST / 32];
// What the lanes of a warp show each other.
static unsigned char shown[MOST / 32][32][16];
static unsigned current;
// Whether a thread came to a barrier, or to its end, since the last round.
static unsigned moved;
static jmp_buf scheduler;
static void (*body)(void *);
static void *body_data;
static unsigned char *stacks;

[[noreturn]] static void stop(const char *what) {
  fprintf(stderr, "emulated kernel: block (%u, %u, %u): %s\n", blockIdx.x, blockIdx.y, blockIdx.z, what);
  abort();
}

static void leave(Barrier &barrier) {
  barrier.there--;
  if (barrier.there && barrier.here == barrier.there) barrier.here = 0, barrier.turn++;
}

static void entry() {
  body(body_data);
  Fiber &fiber = fibers[current];
  fiber.done = true;
  leave(block);
  Barrier &warp = warps[fiber.warp];
  if (warp.here) stop("a lane is done that others of its warp wait for");
  warp.there--;
  moved++;
  _longjmp(scheduler, 1);
}

static void wait(Barrier &barrier, unsigned all = 0) {
  if (barrier.there < all) stop("a lane is done that others of its warp ask");
  moved++;
  unsigned turn = barrier.turn;
  if (++barrier.here == barrier.there) {
    barrier.here = 0;
    barrier.turn++;
    return;
  }
  while (barrier.turn == turn) {
    if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
  }
}

// Goes on with a fiber until it waits or is done.
static void resume(unsigned index) {
  Fiber &fiber = fibers[index];
  current = index;
  threadIdx = fiber.index;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + index * STACK;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
  setcontext(&context);
}

extern "C" unsigned char __start_emulated_shared[] __attribute__((weak));
extern "C" unsigned char __stop_emulated_shared[] __attribute__((weak));

static void run_block(unsigned count, bool backwards) {
  memset(dynamic_shared, 0xff, sizeof dynamic_shared);
  if (__start_emulated_shared) memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
  block = Barrier{0, count, 0};
  for (unsigned warp = 0; warp * 32 < count; warp++) warps[warp] = Barrier{0, std::min(32u, count - warp * 32), 0};
  for (unsigned i = 0; i < count; i++) {
    fibers[i].started = fibers[i].done = false;
    fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    fibers[i].warp = i / 32;
    fibers[i].lane = i % 32;
  }
  while (block.there) {
    moved = 0;
    for (unsigned i = 0; i < count; i++) {
      unsigned index = backwards ? count - 1 - i : i;
      if (!fibers[index].done) resume(index);
    }
    if (!moved) stop("threads wait at different barriers");
  }
}

static void launch(const unsigned grid[3], const unsigned threads[3], unsigned shared, void (*kernel)(void *), void *data) {
  static unsigned launches;
  unsigned count = threads[0] * threads[1] * threads[2];
  if (!count || count > MOST || shared > sizeof dynamic_shared || grid[1] > 65535 || grid[2] > 65535 || !(grid[0] * grid[1] * grid[2])) {
    fprintf(stderr, "emulated kernel: no such launch: %u threads, %u bytes, grid %u %u %u\n", count, shared, grid[0], grid[1], grid[2]);
    abort();
  }
  if (!stacks) stacks = (unsigned char *)mmap(0, STACK * MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads[0], threads[1], threads[2]};
  body = kernel;
  body_data = data;
  bool backwards = launches++ % 2;
  for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) run_block(count, backwards);
}

// Calls a kernel with arguments as the driver takes them: a pointer to each.
template <typename... A> struct Call {
  void (*kernel)(A...);
  void **arguments;
  template <size_t... I> void with(std::index_sequence<I...>) { kernel(*reinterpret_cast<std::remove_const_t<A> *>(arguments[I])...); }
  static void run(void *self) { static_cast<Call *>(self)->with(std::index_sequence_for<A...>()); }
};
template <typename... A> void call(void (*kernel)(A...), const unsigned grid[3], const unsigned threads[3], unsigned shared, void **arguments, unsigned count) {
  if (count != sizeof...(A)) {
    fprintf(stderr, "emulated kernel: %u arguments for %u\n", count, (unsigned)sizeof...(A));
    abort();
  }
  Call<A...> data{kernel, arguments};
  launch(grid, threads, shared, Call<A...>::run, &data);
}

// Lanes of this warp.
static unsigned lanes() {
  unsigned count = blockDim.x * blockDim.y * blockDim.z;
  return std::min(32u, count - fibers[current].warp * 32);
}

template <typename T> T shuffle(T value, unsigned from) {
  static_assert(sizeof(T) <= 16, "a register or a few");
  Fiber &fiber = fibers[current];
  Barrier &barrier = warps[fiber.warp];
  memcpy(shown[fiber.warp][fiber.lane], &value, sizeof(T));
  wait(barrier, lanes());
  T result;
  memcpy(&result, shown[fiber.warp][from % 32], sizeof(T));
  wait(barrier, lanes());
  return result;
}
static inline unsigned lane() { return fibers[current].lane; }
}  // namespace emulated

// The same, inside of a kernel's file.
#define EMULATE_IN(space, name)                                                                                          \
  extern "C" void emulated_##space##_##name(const unsigned *grid, const unsigned *threads, unsigned shared, void **arguments, unsigned count) { \
    emulated::call(&name, grid, threads, shared, arguments, count);                                                      \
  }
#define EMULATE_SPACE(space, name) EMULATE_IN(space, name)
#define ENTRY(name) EMULATE_SPACE(SPACE, name)

#define EMULATE(space, name)                                                                                             \
  extern "C" void emulated_##space##_##name(const unsigned *grid, const unsigned *threads, unsigned shared, void **arguments, unsigned count) { \
    emulated::call(&space::name, grid, threads, shared, arguments, count);                                               \
  }

static inline void __syncthreads() { emulated::wait(emulated::block); }
static inline void __syncwarp(unsigned = ~0u) {
  emulated::wait(emulated::warps[emulated::fibers[emulated::current].warp], emulated::lanes());
}
template <typename T> T __shfl_sync(unsigned, T value, int from) { return emulated::shuffle(value, from); }
template <typename T> T __shfl_xor_sync(unsigned, T value, int with) { return emulated::shuffle(value, emulated::lane() ^ with); }
template <typename T> T __shfl_down_sync(unsigned, T value, unsigned by) {
  unsigned lane = emulated::lane();
  return emulated::shuffle(value, lane + by < 32 ? lane + by : lane);
}
template <typename T> T __shfl_up_sync(unsigned, T value, unsigned by) {
  unsigned lane = emulated::lane();
  return emulated::shuffle(value, lane >= by ? lane - by : lane);
}
template <typename T> T atomicAdd(T *at, T value) { T old = *at; *at = old + value; return old; }
template <typename T> T atomicMax(T *at, T value) { T old = *at; *at = std::max(old, value); return old; }
template <typename T> T __ldg(const T *at) { return *at; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf expf
#define __logf logf
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __int_as_float(int bits) {
  float number;
  memcpy(&number, &bits, 4);
  return number;
}
static inline float __fdividef(float a, float b) { return a / b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

// Tiles of matrices. Each lane holds all of a factor, and its share of a sum.
namespace nvcuda { namespace wmma {
struct matrix_a; struct matrix_b; struct accumulator; struct row_major; struct col_major;
enum layout_t { mem_row_major, mem_col_major };
template <typename Use, int M, int N, int K, typename T, typename Order = void> struct fragment {
  static constexpr int rows = std::is_same<Use, matrix_b>::value ? K : M, columns = std::is_same<Use, matrix_a>::value ? K : N;
  static constexpr int num_elements = rows * columns;
  T x[num_elements];
};
// Neighbouring lanes have neighbouring numbers of a column, unlike any GPU's.
template <int M, int N, int K, typename T> struct fragment<accumulator, M, N, K, T, void> {
  static constexpr int num_elements = M * N / 32;
  static int row(int i) { return (i * 32 + emulated::lane()) % M; }
  static int column(int i) { return (i * 32 + emulated::lane()) / M; }
  T x[num_elements];
};
static inline float widen(float x) { return x; }
static inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
static inline float widen(__half x) { return __half2float(x); }
template <typename U, int M, int N, int K, typename T, typename O, typename V> void fill_fragment(fragment<U, M, N, K, T, O> &f, V value) {
  for (T &x : f.x) x = value;
}
static inline void aligned(const void *place, unsigned bytes) {
  if ((uintptr_t)place % 32 || bytes % 16) emulated::stop("a tile that is not aligned");
}
template <typename U, int M, int N, int K, typename T, typename O> void load_matrix_sync(fragment<U, M, N, K, T, O> &f, const T *from, unsigned stride) {
  aligned(from, stride * sizeof(T));
  __syncwarp();
  for (int r = 0; r < f.rows; r++)
    for (int c = 0; c < f.columns; c++) f.x[r * f.columns + c] = std::is_same<O, col_major>::value ? from[c * stride + r] : from[r * stride + c];
  __syncwarp();
}
template <int M, int N, int K, typename T> void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const T *from, unsigned stride, layout_t order) {
  aligned(from, stride * sizeof(T));
  __syncwarp();
  for (int i = 0; i < f.num_elements; i++) f.x[i] = order == mem_col_major ? from[f.column(i) * stride + f.row(i)] : from[f.row(i) * stride + f.column(i)];
  __syncwarp();
}
template <int M, int N, int K, typename T> void store_matrix_sync(T *to, const fragment<accumulator, M, N, K, T> &f, unsigned stride, layout_t order) {
  aligned(to, stride * sizeof(T));
  __syncwarp();
  for (int i = 0; i < f.num_elements; i++) (order == mem_col_major ? to[f.column(i) * stride + f.row(i)] : to[f.row(i) * stride + f.column(i)]) = f.x[i];
  __syncwarp();
}
template <int M, int N, int K, typename A, typename OA, typename B, typename OB>
void mma_sync(fragment<accumulator, M, N, K, float> &d, const fragment<matrix_a, M, N, K, A, OA> &a, const fragment<matrix_b, M, N, K, B, OB> &b,
              const fragment<accumulator, M, N, K, float> &c) {
  for (int i = 0; i < d.num_elements; i++) {
    float sum = c.x[i];
    for (int k = 0; k < K; k++) sum += widen(a.x[d.row(i) * K + k]) * widen(b.x[k * N + d.column(i)]);
    d.x[i] = sum;
  }
}
}}  // namespace nvcuda::wmma
