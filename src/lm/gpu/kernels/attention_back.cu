// Attention over packed tokens, the way back.
#include "attention.cuh"

// The gradient to queries. Also leaves the sum over a head of result times gradient, for that to keys: (N, H).
template <class T, int E>
static __device__ __forceinline__ void to_queries(const T *query, const T *key, const T *value, const T *mixed, const T *gradient,
                           const float *sums, float *along, T *to_query, const unsigned *tiles, const Shape shape) {
  constexpr int K = BY, PADDING = VECTOR<T>, COUNT = Tile<T>::COUNT;
  DYNAMIC_SHARED(unsigned char, shared);
  Taken taken = {shared};
  const Matrix<T> queries = taken.matrix<T>(ROWS, E, PADDING), gradients = taken.matrix<T>(ROWS, E, PADDING);
  const Matrix<T> keys = taken.matrix<T>(K, E, PADDING), values = taken.matrix<T>(K, E, PADDING);
  const Matrix<T> all_slopes = taken.matrix<T>(ROWS, K, PADDING);
  float *const row_sums = taken.line<float>(ROWS), *const row_along = taken.line<float>(ROWS);
  int *const positions = taken.line<int>(ROWS);
  const int strip = warp() * 16;
  const Matrix<T> slopes = all_slopes.part(strip, 0);
  const Tile<T> tile(reinterpret_cast<float *>(shared));

  const QueryTile mine(tiles + 5 * blockIdx.x);
  const int kv_head = blockIdx.y;
  mine.fetch_queries<T, E>(queries, query, shape, kv_head);
  fetch<T, E>(gradients, ROWS, shape.width, [&](int row) -> const T * {
    return mine.real(row, shape) ? gradient + mine.place(row, shape, kv_head) * shape.width : nullptr;
  });
  __syncthreads();
  for (int i = 0; i < 4; i++) {
    const int row = strip + i * 4 + lane() / 8;
    const bool real = mine.real(row, shape);
    const u64 place = mine.place(row, shape, kv_head);
    float sum_of = 0.0f;
    if (real)
      for (int column = lane() % 8; column < shape.width; column += 8)
        sum_of += wide(mixed[place * shape.width + column]) * wide(gradients.at[row * gradients.ld + column]);
    sum_of = sum_of_eight(sum_of);
    if (lane() % 8 == 0) {
      row_along[row] = sum_of;
      // A row that is none has weights of e to the −∞.
      row_sums[row] = real ? sums[place] : INFINITY;
      positions[row] = mine.position(row, shape);
      if (real) along[place] = sum_of;
    }
  }
  __syncwarp();

  typename Tile<T>::Sum sum[E / 16];
  for (int e = 0; e < E / 16; e++) Tile<T>::clear(sum[e]);
  const int end = mine.end(shape), last = mine.position(strip + 15, shape);
  for (int first = mine.begin(shape) / K * K; first < end; first += K) {
    __syncthreads();
    mine.fetch_keys<T, E>(keys, key, shape.key_step, first, K, shape, kv_head);
    mine.fetch_keys<T, E>(values, value, shape.value_step, first, K, shape, kv_head);
    __syncthreads();
    if (first > last) continue;

    typename Tile<T>::Sum score[K / 16], slope[K / 16];
    for (int n = 0; n < K / 16; n++) Tile<T>::clear(score[n]), Tile<T>::clear(slope[n]);
#pragma unroll(TURNS<T>)
    for (int e = 0; e < E; e += 16) {
      typename Tile<T>::Left left, right;
      Tile<T>::load(left, queries.part(strip, e));
      Tile<T>::load(right, gradients.part(strip, e));
#pragma unroll
      for (int n = 0; n < K / 16; n++) {
        Tile<T>::add_turned(score[n], left, keys.part(16 * n, e));
        Tile<T>::add_turned(slope[n], right, values.part(16 * n, e));
      }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int row = tile.where[i] / 16, column = tile.where[i] % 16;
      const float of_row = row_sums[strip + row], off = row_along[strip + row];
      const int position = positions[strip + row];
#pragma unroll
      for (int n = 0; n < K / 16; n++) {
        const bool seen = shape.sees(position, first + 16 * n + column);
        const float weight = seen ? __expf(score[n].x[i] - of_row) : 0.0f;
        set(slopes.at[row * slopes.ld + 16 * n + column], weight * (slope[n].x[i] - off));
      }
    }
    __syncwarp();
#pragma unroll(TURNS<T>)
    for (int k = 0; k < K; k += 16) {
      typename Tile<T>::Left left;
      Tile<T>::load(left, slopes.part(0, k));
#pragma unroll
      for (int e = 0; e < E / 16; e++) Tile<T>::add(sum[e], left, keys.part(k, 16 * e));
    }
    __syncwarp();
  }

#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const int row = tile.where[i] / 16, column = tile.where[i] % 16;
    if (!mine.real(strip + row, shape)) continue;
    T *const to = to_query + mine.place(strip + row, shape, kv_head) * shape.width;
#pragma unroll
    for (int e = 0; e < E / 16; e++)
      if (16 * e + column < shape.width) set(to[16 * e + column], sum[e].x[i]);
  }
}

// The gradients to keys and values. A tile of keys is five numbers: its first token, tokens, the position of the first, and
// which stretches of queries see it, each of which is three.
template <class T, int E>
static __device__ __forceinline__ void to_keys(const T *query, const T *key, const T *value, const T *gradient, const float *sums,
                        const float *along, T *to_key, T *to_value, const unsigned *tiles, const unsigned *stretches,
                        const Shape shape) {
  constexpr int PADDING = VECTOR<T>, COUNT = Tile<T>::COUNT;
  DYNAMIC_SHARED(unsigned char, shared);
  Taken taken = {shared};
  const Matrix<T> keys = taken.matrix<T>(ROWS, E, PADDING), values = taken.matrix<T>(ROWS, E, PADDING);
  const Matrix<T> queries = taken.matrix<T>(BY, E, PADDING), gradients = taken.matrix<T>(BY, E, PADDING);
  const Matrix<T> all_weights = taken.matrix<T>(ROWS, BY, PADDING), all_slopes = taken.matrix<T>(ROWS, BY, PADDING);
  float *const row_sums = taken.line<float>(BY), *const row_along = taken.line<float>(BY);
  int *const positions = taken.line<int>(BY);
  const int strip = warp() * 16;
  const Matrix<T> weights = all_weights.part(strip, 0), slopes = all_slopes.part(strip, 0);
  const Tile<T> tile(reinterpret_cast<float *>(shared));

  const unsigned *const mine = tiles + 5 * blockIdx.x;
  const int token = mine[0], count = mine[1], first_key = mine[2];
  const int kv_head = blockIdx.y, groups = shape.groups();
  const auto head = [&](const T *all, int step) {
    return [=](int row) -> const T * {
      return row < count ? all + (u64)(token + row) * step + kv_head * shape.width : nullptr;
    };
  };
  fetch<T, E>(keys, ROWS, shape.width, head(key, shape.key_step));
  fetch<T, E>(values, ROWS, shape.width, head(value, shape.value_step));

  typename Tile<T>::Sum of_key[E / 16], of_value[E / 16];
  for (int e = 0; e < E / 16; e++) Tile<T>::clear(of_key[e]), Tile<T>::clear(of_value[e]);
  for (int stretch = mine[3]; stretch < (int)mine[4]; stretch++) {
    const unsigned *const at = stretches + 3 * stretch;
    const Queries of = {(int)at[0], (int)at[1], (int)at[2]};
    // Those from the first key's position on, as far as the last key is in the window.
    const int begin = max(0, first_key - of.position) * groups;
    const int beyond = shape.window < 1 << 29 ? first_key + count - 1 + shape.window - of.position : of.count;
    const int end = min(of.count, beyond) * groups;
    for (int first = begin; first < end; first += BY) {
      __syncthreads();
      const auto place = [&](int row) { return of.place(first + row, shape, kv_head); };
      fetch<T, E>(queries, BY, shape.width, [&](int row) -> const T * {
        return first + row < end ? of.query(query, first + row, shape, kv_head) : nullptr;
      });
      fetch<T, E>(gradients, BY, shape.width, [&](int row) -> const T * {
        return first + row < end ? gradient + place(row) * shape.width : nullptr;
      });
      for (int row = threadIdx.x; row < BY; row += THREADS) {
        const bool real = first + row < end;
        row_sums[row] = real ? sums[place(row)] : INFINITY;
        row_along[row] = real ? along[place(row)] : 0.0f;
        positions[row] = of.position + (first + row) / groups;
      }
      __syncthreads();

      typename Tile<T>::Sum score[BY / 16], slope[BY / 16];
      for (int n = 0; n < BY / 16; n++) Tile<T>::clear(score[n]), Tile<T>::clear(slope[n]);
#pragma unroll(TURNS<T>)
      for (int e = 0; e < E; e += 16) {
        typename Tile<T>::Left left, right;
        Tile<T>::load(left, keys.part(strip, e));
        Tile<T>::load(right, values.part(strip, e));
#pragma unroll
        for (int n = 0; n < BY / 16; n++) {
          Tile<T>::add_turned(score[n], left, queries.part(16 * n, e));
          Tile<T>::add_turned(slope[n], right, gradients.part(16 * n, e));
        }
      }
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        const int row = tile.where[i] / 16;
#pragma unroll
        for (int n = 0; n < BY / 16; n++) {
          const int column = 16 * n + tile.where[i] % 16;
          const bool seen = shape.sees(positions[column], first_key + strip + row);
          const float weight = seen ? __expf(score[n].x[i] - row_sums[column]) : 0.0f;
          set(weights.at[row * weights.ld + column], weight);
          set(slopes.at[row * slopes.ld + column], weight * (slope[n].x[i] - row_along[column]));
        }
      }
      __syncwarp();
#pragma unroll(TURNS<T>)
      for (int k = 0; k < BY; k += 16) {
        typename Tile<T>::Left left, right;
        Tile<T>::load(left, weights.part(0, k));
        Tile<T>::load(right, slopes.part(0, k));
#pragma unroll
        for (int e = 0; e < E / 16; e++) {
          Tile<T>::add(of_value[e], left, gradients.part(k, 16 * e));
          Tile<T>::add(of_key[e], right, queries.part(k, 16 * e));
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const int row = strip + tile.where[i] / 16, column = tile.where[i] % 16;
    if (row >= count) continue;
    const u64 place = ((u64)(token + row) * shape.kv_heads + kv_head) * shape.width;
#pragma unroll
    for (int e = 0; e < E / 16; e++)
      if (16 * e + column < shape.width) {
        set(to_key[place + 16 * e + column], of_key[e].x[i]);
        set(to_value[place + 16 * e + column], of_value[e].x[i]);
      }
  }
}

#define BACK(E)                                                                                                        \
  KERNEL __launch_bounds__(THREADS) attention_to_queries_##E(                                                          \
      const Number *query, const Number *key, const Number *value, const Number *mixed, const Number *gradient,        \
      const float *sums, float *along, Number *to_query, const unsigned *tiles, SHAPE) {                               \
    to_queries<Number, E>(query, key, value, mixed, gradient, sums, along, to_query, tiles, THE_SHAPE);                \
  }                                                                                                                    \
  ENTRY(attention_to_queries_##E)                                                                                                                    \
  KERNEL __launch_bounds__(THREADS) attention_to_keys_##E(                                                             \
      const Number *query, const Number *key, const Number *value, const Number *gradient, const float *sums,          \
      const float *along, Number *to_key, Number *to_value, const unsigned *tiles, const unsigned *stretches, SHAPE) { \
    to_keys<Number, E>(query, key, value, gradient, sums, along, to_key, to_value, tiles, stretches, THE_SHAPE);       \
  }                                                                                                                    \
  ENTRY(attention_to_keys_##E)

// Gradients lie without gaps, as results do.
BACK(64)
BACK(128)
