// libnccl.so.2, as far as ranks call it that train together. Where they are threads of one process, numbers lie in its memory and
// are added up, once all have come; a call that waits for others says so, as NCCL's do that do not block. Where counts are written
// down, ranks are processes on GPUs that are not there: nothing is added up, and all is done at once.
//
// -DREFUSES=N: rank N cannot come together with the others.
#include <pthread.h>
#include <signal.h>
#include "count.h"

enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, IN_PROGRESS = 7, FLOAT32 = 7, SUM = 0, MOST = 16 };

struct id { char bytes[128]; };
struct config { size_t size; unsigned magic, version; int blocking; };
struct team { struct id id; int ranks, come, waiting; struct communicator *members[MOST]; };
struct communicator { struct team *team; int rank, state; float *numbers; size_t count; };

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static struct team teams[256];
static int known, drawn;

static int alone(void) { return getenv("FAKE_CUDA_OUT") != 0; }

int ncclGetVersion(int *version) { *version = 22809; return SUCCESS; }
const char *ncclGetErrorString(int code) {
  return code == SYSTEM_ERROR ? "unhandled system error" : code == INVALID_ARGUMENT ? "invalid argument" : "an error";
}
const char *ncclGetLastError(void *communicator) {
#ifdef REFUSES
  return "it has no way\n";
#endif
  return "";
}

int ncclGetUniqueId(struct id *id) {
  pthread_mutex_lock(&one);
  memset(id, 7, sizeof *id);
  snprintf(id->bytes, sizeof id->bytes, "%d of %d", drawn++, (int)getpid());
  pthread_mutex_unlock(&one);
  return SUCCESS;
}

int ncclCommInitRankConfig(struct communicator **made, int ranks, struct id id, int rank, struct config *config) {
  if (config->size < sizeof *config || config->magic != 0xcafebeef || config->version < 21400 || config->blocking) return INVALID_ARGUMENT;
#ifdef REFUSES
  if (rank == REFUSES) return SYSTEM_ERROR;
#endif
  pthread_mutex_lock(&one);
  COUNT("ncclCommInitRankConfig");
  struct team *team = teams;
  while (team < teams + known && memcmp(&team->id, &id, sizeof id)) team++;
  if (team == teams + known) {
    if (known == 256) abort();
    known++, team->id = id, team->ranks = ranks;
  }
  struct communicator *new = *made = calloc(1, sizeof *new);
  *new = (struct communicator){team, rank, alone() ? SUCCESS : IN_PROGRESS};
  team->members[rank] = new;
  if (++team->come == ranks)
    for (int i = 0; i < ranks; i++) team->members[i]->state = SUCCESS;
  int state = new->state;
  pthread_mutex_unlock(&one);
  return state;
}

int ncclCommGetAsyncError(struct communicator *communicator, int *state) {
  pthread_mutex_lock(&one);
  *state = communicator->state;
  pthread_mutex_unlock(&one);
  return SUCCESS;
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, struct communicator *communicator, void *stream) {
  if (from != to || type != FLOAT32 || operation != SUM) return INVALID_ARGUMENT;
  pthread_mutex_lock(&one);
  COUNT("ncclAllReduce");
  counter("bytes", "NCCL")->count += 4 * count;
  struct team *team = communicator->team;
  int killed = (int)setting("FAKE_NCCL_KILLS", 0);
  if (alone() && killed) {
    if (communicator->rank == killed) raise(SIGKILL);
    communicator->state = IN_PROGRESS;
  }
  if (!alone()) {
    communicator->state = IN_PROGRESS, communicator->numbers = to, communicator->count = count;
    if (++team->waiting == team->ranks) {
      int alike = 1;
      for (int i = 0; i < team->ranks; i++) alike &= team->members[i]->count == count;
      for (size_t at = 0; alike && at < count; at++) {
        float sum = 0;
        for (int i = 0; i < team->ranks; i++) sum += team->members[i]->numbers[at];
        for (int i = 0; i < team->ranks; i++) team->members[i]->numbers[at] = sum;
      }
      for (int i = 0; i < team->ranks; i++) team->members[i]->state = alike ? SUCCESS : INVALID_ARGUMENT;
      team->waiting = 0;
    }
  }
  int state = communicator->state;
  pthread_mutex_unlock(&one);
  return state;
}

// The others wait on.
int ncclCommAbort(struct communicator *communicator) {
  pthread_mutex_lock(&one);
  COUNT("ncclCommAbort");
  communicator->team->members[communicator->rank] = 0;
  free(communicator);
  pthread_mutex_unlock(&one);
  return SUCCESS;
}
