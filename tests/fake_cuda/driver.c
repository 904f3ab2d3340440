// libcuda.so.1, as far as candle calls it.
#include "count.h"

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

// Streams record launches into graphs: what is asked meanwhile is counted as recorded, and what cannot be recorded makes the
// recording void. There is one at a time.
static struct { int on, is_void; double launches; long taken; } capture;
// Before each block of memory: its bytes, and whether it is a graph's.
struct block { u64 bytes; int of_graph; };
static struct graph { double launches; } graphs[4096];
static int made;

// What must not be asked while a stream records.
#define NOT_RECORDED                                                          \
  if (capture.on) {                                                           \
    counter("refused", __func__)->count++;                                    \
    capture.is_void = 1;                                                      \
    return CAPTURE_UNSUPPORTED;                                               \
  }

static u64 in_use, peak;
static u64 memory(void) { return setting("FAKE_CUDA_MEMORY", 80000000000UL); }

// Handles are never followed: any number that is not zero will do.
#define HANDLE(place) (*(place) = (void *)8, 0)

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = (int)setting("FAKE_CUDA_DEVICES", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) {
  int count;
  cuDeviceGetCount(&count);
  if (ordinal >= count) return INVALID_DEVICE;
  *device = ordinal;
  return 0;
}
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "nothing"); return 0; }
int cuDeviceGetPCIBusId(char *id, int length, int device) { snprintf(id, length, "0000:%02x:00.0", device); return 0; }
int cuDeviceTotalMem_v2(u64 *bytes, int device) { *bytes = memory(); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 16: *value = 132; break;           // multiprocessors
    case 75: *value = 9; break;             // compute capability
    case 76: *value = 0; break;
    case 97: *value = 227 * 1024; break;    // shared memory of a block, opted in to
    case 115: *value = 1; break;            // memory pools
    default: *value = 1024;
  }
  return 0;
}
int cuGetErrorName(int code, const char **name) {
  *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE" : "CUDA_ERROR_UNKNOWN";
  return 0;
}
int cuGetErrorString(int code, const char **text) { *text = code == OUT_OF_MEMORY ? "out of memory" : "an error"; return 0; }

int cuDevicePrimaryCtxRetain(void **context, int device) { return HANDLE(context); }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetCurrent(void **context) { return HANDLE(context); }
int cuCtxSynchronize(void) { NOT_RECORDED COUNT("cuCtxSynchronize"); return 0; }
int cuStreamCreate(void **stream, unsigned flags) { return HANDLE(stream); }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuStreamSynchronize(void *stream) { NOT_RECORDED COUNT("cuStreamSynchronize"); return 0; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { COUNT("cuStreamWaitEvent"); return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = capture.on ? 1 + capture.is_void : 0; return 0; }
int cuEventCreate(void **event, unsigned flags) { COUNT("cuEventCreate"); return HANDLE(event); }
int cuEventDestroy_v2(void *event) { return 0; }
int cuEventQuery(void *event) { COUNT("cuEventQuery"); return 0; }
int cuEventRecord(void *event, void *stream) { COUNT("cuEventRecord"); return 0; }
int cuDeviceGetDefaultMemPool(void **pool, int device) { return HANDLE(pool); }
int cuMemPoolGetAttribute(void *pool, int attribute, void *value) { *(u64 *)value = 0; return 0; }
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) { return 0; }

int cuMemGetInfo_v2(u64 *left, u64 *total) { *total = memory(); *left = *total - in_use; return 0; }
int cuMemAllocAsync(void **place, u64 bytes, void *stream) {
  COUNT("cuMemAllocAsync");
  if (in_use + bytes > memory()) return OUT_OF_MEMORY;
  in_use += bytes;
  capture.taken += capture.on;
  if (in_use > peak) counter("bytes", "peak")->count = peak = in_use;
  struct block *block = malloc(sizeof *block);
  *block = (struct block){bytes, capture.on};
  *place = block;
  return 0;
}
int cuMemFreeAsync(void *place, void *stream) {
  struct block *block = place;
  if (!block) return 0;
  // A graph frees what it took, and nothing else.
  if (block->of_graph != capture.on) {
    counter("refused", __func__)->count++;
    return INVALID_VALUE;
  }
  in_use -= block->bytes;
  capture.taken -= capture.on;
  free(block);
  return 0;
}
int cuMemcpyHtoDAsync_v2(void *to, const void *from, u64 bytes, void *stream) {
  // The host's memory may be another when the recording is launched.
  NOT_RECORDED
  COUNT("cuMemcpyHtoD");
  counter("bytes", "HtoD")->count += bytes;
  return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, u64 bytes, void *stream) {
  NOT_RECORDED
  COUNT("cuMemcpyDtoH");
  counter("bytes", "DtoH")->count += bytes;
  memset(to, 0, bytes);
  unsigned word = (unsigned)setting("FAKE_CUDA_READ", 0);
  for (u64 i = 0; i + sizeof word <= bytes; i += sizeof word) memcpy((char *)to + i, &word, sizeof word);
  return 0;
}
int cuMemcpyDtoDAsync_v2(void *to, const void *from, u64 bytes, void *stream) {
  COUNT("cuMemcpyDtoD");
  counter("bytes", "DtoD")->count += bytes;
  return 0;
}
int cuMemsetD8Async(void *place, unsigned char value, u64 bytes, void *stream) {
  COUNT("cuMemset");
  counter("bytes", "memset")->count += bytes;
  return 0;
}

int cuModuleLoadData(void **module, const void *image) { NOT_RECORDED COUNT("cuModuleLoadData"); return HANDLE(module); }
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = counter("kernel", name);
  return 0;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 0; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x, unsigned y, unsigned z,
                   unsigned shared, void *stream, void **arguments, void **extra) {
  // What a GPU would refuse.
  if (!grid_x || !grid_y || !grid_z || !x || !y || !z || x * y * z > 1024 || grid_y > 65535 || grid_z > 65535 || shared > 227 * 1024) {
    counter("refused", __func__)->count++;
    return INVALID_VALUE;
  }
  if (capture.on) {
    capture.launches++;
    return 0;
  }
  COUNT("cuLaunchKernel");
  ((struct counter *)function)->count++;
  return 0;
}

int cuStreamBeginCapture_v2(void *stream, int mode) {
  NOT_RECORDED
  COUNT("cuStreamBeginCapture");
  capture.on = 1, capture.is_void = 0, capture.launches = 0, capture.taken = 0;
  return 0;
}
int cuStreamEndCapture(void *stream, void **graph) {
  if (!capture.on) return INVALID_VALUE;
  capture.on = 0;
  if (capture.is_void) return CAPTURE_INVALIDATED;
  // A graph's own memory is free again when it ends.
  if (capture.taken || made == 4096) {
    counter("refused", "memory that a graph keeps")->count++;
    return INVALID_VALUE;
  }
  graphs[made].launches = capture.launches;
  *graph = &graphs[made++];
  return 0;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, u64 flags) { *executable = graph; return 0; }
int cuGraphLaunch(void *executable, void *stream) {
  NOT_RECORDED
  COUNT("cuGraphLaunch");
  counter("launches", "in graphs")->count += ((struct graph *)executable)->launches;
  return 0;
}
int cuGraphExecDestroy(void *executable) { return 0; }
int cuGraphDestroy(void *graph) { return 0; }
