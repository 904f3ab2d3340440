// libcublas.so.13, as far as candle calls it.
#include "count.h"

int cuStreamIsCapturing(void *stream, int *status) __attribute__((weak));

int cublasCreate_v2(void **handle) { *handle = (void *)8; return 0; }
int cublasDestroy_v2(void *handle) { return 0; }
int cublasSetStream_v2(void *handle, void *stream) { return 0; }
int cublasSetMathMode(void *handle, int mode) { return 0; }
int cublasSetWorkspace_v2(void *handle, void *workspace, u64 bytes) { return 0; }
int cublasGemmStridedBatchedEx(void *handle, int transpose_a, int transpose_b, int m, int n, int k, const void *alpha,
                               const void *a, int a_type, int lda, long stride_a, const void *b, int b_type, int ldb,
                               long stride_b, const void *beta, void *c, int c_type, int ldc, long stride_c, int batch,
                               int compute, int algorithm) {
  int recorded = 0;
  if (cuStreamIsCapturing) cuStreamIsCapturing(0, &recorded);
  if (recorded) {
    COUNT("cublasGemmStridedBatchedEx, recorded");
    return 0;
  }
  COUNT("cublasGemmStridedBatchedEx");
  if (m <= 0 || n <= 0 || k <= 0 || batch <= 0) return 7;
  // CUDA_R_16BF is 14, CUDA_R_16F 2, CUDA_R_32F 0.
  counter("flop", a_type == 14 ? "bf16" : a_type == 2 ? "f16" : "f32")->count += 2.0 * m * n * k * batch;
  return 0;
}
