/* A libnvidia-ml.so.1 for machines without NVIDIA hardware.
 *
 * It answers what nvidia-ml-py asks, out of the text file named by $FAKE_NVML_STATE, which is
 * read again whenever it changes. One "key value" a line:
 *
 *   count 8                      GPUs
 *   driver 580.65.06             also: nvml, cuda (13000), init_error (an nvmlReturn_t)
 *   gpu*.name NVIDIA H200        a value of every GPU ...
 *   gpu3.temperature 91          ... and of one, which wins
 *   gpu3.error.all 15            every query of GPU 3 fails (15: GPU is lost)
 *   gpu3.error.power 4           one query of GPU 3 fails (4: no permission)
 *   gpu0.processes 812:70000,99:5    pid:MiB
 *   gpu0.slice1.name ...         MIG slice 1 of GPU 0
 *   ancestor.0.1 10              nvmlGpuTopologyLevel_t between two GPUs
 *   peer.0.1 4                   NVLinks from GPU 0 to GPU 1 without a switch
 *
 * state.py writes that file from a machine description. Structures follow nvml.h; those that a
 * wrong size would corrupt are asserted below.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef int result;
enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, UNSUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7,
    NOT_LOADED = 9, LOST = 15, MISMATCH = 18,
};
enum { MAX_GPUS = 72, MAX_SLICES = 7, MAX_LINKS = 36 };

typedef struct { int gpu, slice; } *device; /* slice -1: the whole GPU */
typedef struct { u64 total, free, used; } memory;
typedef struct { u32 version; u64 total, reserved, free, used; } memory_v2;
typedef struct { u32 gpu, memory; } utilisation;
typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; } pci;
typedef struct { u32 pid; u64 memory; u32 gpu_instance, compute_instance; } process;
typedef struct { u32 version; int sensor, celsius; } temperature;
typedef struct { u32 version; unsigned char cluster[16]; result status; u32 clique; unsigned char state; u32 health; } fabric;
_Static_assert(sizeof(memory_v2) == 40 && sizeof(pci) == 68 && sizeof(process) == 24, "as in nvml.h");
_Static_assert(sizeof(fabric) == 36 && sizeof(temperature) == 12, "as in nvml.h");

/* ---- the state file -------------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *state;
static struct timespec state_time;
static int opened;
static struct { int gpu, slice; } devices[MAX_GPUS][MAX_SLICES + 1]; /* column 0: the whole GPU */

static void refresh(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    struct stat facts;
    if (!path || stat(path, &facts)) return;
    if (state && !memcmp(&state_time, &facts.st_mtim, sizeof state_time)) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    free(state);
    state = calloc(1, facts.st_size + 3);
    state[0] = '\n'; /* so that every key stands behind a line break */
    size_t length = fread(state + 1, 1, facts.st_size, file);
    state[length + 1] = '\n';
    fclose(file);
    state_time = facts.st_mtim;
}

static int find(const char *key, char *out, size_t size) {
    char pattern[128];
    snprintf(pattern, sizeof pattern, "\n%s ", key);
    const char *at = state ? strstr(state, pattern) : NULL;
    if (!at) return 0;
    at += strlen(pattern);
    size_t length = strcspn(at, "\n");
    if (length >= size) length = size - 1;
    memcpy(out, at, length);
    out[length] = 0;
    return 1;
}

/* Text of `key` of a device (NULL: of the system); 0 when the file does not say. */
static int text(device d, const char *key, char *out, size_t size) {
    char full[96];
    int found = 0;
    pthread_mutex_lock(&lock);
    refresh();
    if (!d) {
        found = find(key, out, size);
    } else {
        if (d->slice >= 0) {
            snprintf(full, sizeof full, "gpu%d.slice%d.%s", d->gpu, d->slice, key);
            found = find(full, out, size);
        }
        if (!found) { snprintf(full, sizeof full, "gpu%d.%s", d->gpu, key); found = find(full, out, size); }
        if (!found) { snprintf(full, sizeof full, "gpu*.%s", key); found = find(full, out, size); }
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static long long number(device d, const char *key, long long otherwise) {
    char value[64];
    return text(d, key, value, sizeof value) ? strtoll(value, NULL, 0) : otherwise;
}

static int gpu_count(void) {
    long long count = number(NULL, "count", 0);
    return count > MAX_GPUS ? MAX_GPUS : (int)count;
}

/* Whether `query` of a device may be answered: the faults of the state file. */
static result allowed(device d, const char *query) {
    if (!opened) return UNINITIALIZED;
    if (!d || d->gpu >= gpu_count()) return INVALID;
    char key[64];
    snprintf(key, sizeof key, "error.%s", query);
    result one = (result)number(d, key, OK);
    return one ? one : (result)number(d, "error.all", OK);
}

/* ---- shapes of queries ------------------------------------------------------------------------ */

#define QUERY(function, query, ...)            \
    result function(device d, __VA_ARGS__) {   \
        result refused = allowed(d, query);    \
        if (refused) return refused;

/* A number that some GPUs do not have: -1 or nothing in the file means "not supported". */
#define NUMBER(function, key) \
    QUERY(function, key, u32 *value) long long found = number(d, key, -1); if (found < 0) return UNSUPPORTED; *value = (u32)found; return OK; }

#define TEXT(function, key) \
    QUERY(function, key, char *out, u32 size) return text(d, key, out, size) ? OK : UNSUPPORTED; }

#define ALIAS(new, old, parameters, arguments) result new parameters { return old arguments; }

/* ---- the library and the system --------------------------------------------------------------- */

result nvmlInitWithFlags(u32 flags) {
    (void)flags;
    result refused = (result)number(NULL, "init_error", OK);
    if (refused) return refused;
    for (int gpu = 0; gpu < MAX_GPUS; gpu++)
        for (int column = 0; column <= MAX_SLICES; column++) {
            devices[gpu][column].gpu = gpu;
            devices[gpu][column].slice = column - 1;
        }
    opened++;
    return OK;
}
ALIAS(nvmlInit, nvmlInitWithFlags, (void), (0))
ALIAS(nvmlInit_v2, nvmlInitWithFlags, (void), (0))
result nvmlShutdown(void) {
    if (!opened) return UNINITIALIZED;
    opened--;
    return OK;
}
const char *nvmlErrorString(result code) {
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID: return "Invalid Argument";
    case UNSUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case NOT_LOADED: return "Driver Not Loaded";
    case LOST: return "GPU is lost";
    case MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}
static result system_text(const char *key, char *out, u32 size) {
    if (!opened) return UNINITIALIZED;
    return text(NULL, key, out, size) ? OK : UNSUPPORTED;
}
result nvmlSystemGetDriverVersion(char *out, u32 size) { return system_text("driver", out, size); }
result nvmlSystemGetNVMLVersion(char *out, u32 size) { return system_text("nvml", out, size); }
result nvmlSystemGetCudaDriverVersion(int *version) {
    if (!opened) return UNINITIALIZED;
    *version = (int)number(NULL, "cuda", 0);
    return *version ? OK : UNSUPPORTED;
}
ALIAS(nvmlSystemGetCudaDriverVersion_v2, nvmlSystemGetCudaDriverVersion, (int *version), (version))
result nvmlSystemGetProcessName(u32 pid, char *out, u32 size) {
    char key[32];
    snprintf(key, sizeof key, "process.%u", pid);
    return text(NULL, key, out, size) ? OK : NOT_FOUND;
}

/* ---- finding devices -------------------------------------------------------------------------- */

static device whole(int gpu) { return (device)&devices[gpu][0]; }
result nvmlDeviceGetCount_v2(u32 *count) {
    if (!opened) return UNINITIALIZED;
    *count = (u32)gpu_count();
    return OK;
}
ALIAS(nvmlDeviceGetCount, nvmlDeviceGetCount_v2, (u32 *count), (count))
result nvmlDeviceGetHandleByIndex_v2(u32 index, device *out) {
    if (!opened) return UNINITIALIZED;
    if (index >= (u32)gpu_count()) return INVALID;
    *out = whole((int)index);
    return (result)number(*out, "error.handle", OK);
}
ALIAS(nvmlDeviceGetHandleByIndex, nvmlDeviceGetHandleByIndex_v2, (u32 index, device *out), (index, out))
static void bus_id(int gpu, char *out, size_t size) { snprintf(out, size, "00000000:%02X:00.0", 0x10 + gpu); }
static result by_text(const char *wanted, device *out, int is_uuid) {
    char value[96];
    for (int gpu = 0; gpu < gpu_count(); gpu++) {
        if (!is_uuid) bus_id(gpu, value, sizeof value);
        else if (!text(whole(gpu), "uuid", value, sizeof value)) continue;
        if (!strcasecmp(value, wanted)) { *out = whole(gpu); return OK; }
    }
    return NOT_FOUND;
}
result nvmlDeviceGetHandleByUUID(const char *uuid, device *out) { return by_text(uuid, out, 1); }
result nvmlDeviceGetHandleByPciBusId_v2(const char *bus, device *out) { return by_text(bus, out, 0); }
QUERY(nvmlDeviceGetIndex, "index", u32 *index) *index = (u32)d->gpu; return OK; }
QUERY(nvmlDeviceGetMinorNumber, "minor", u32 *minor) *minor = (u32)d->gpu; return OK; }
NUMBER(nvmlDeviceGetMaxMigDeviceCount, "slices_max")
QUERY(nvmlDeviceIsMigDeviceHandle, "is_slice", u32 *answer) *answer = d->slice >= 0; return OK; }
QUERY(nvmlDeviceGetMigDeviceHandleByIndex, "slice", u32 index, device *out)
    if ((int)index >= (int)number(d, "slices", 0) || index >= MAX_SLICES) return NOT_FOUND;
    *out = (device)&devices[d->gpu][index + 1];
    return OK;
}
QUERY(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, "parent", device *out) *out = whole(d->gpu); return OK; }
QUERY(nvmlDeviceGetMigMode, "mig", u32 *current, u32 *pending)
    long long mode = number(d, "mig", -1);
    if (mode < 0) return UNSUPPORTED;
    *current = *pending = (u32)mode;
    return OK;
}

/* ---- what a device is ------------------------------------------------------------------------- */

TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
NUMBER(nvmlDeviceGetArchitecture, "architecture")
NUMBER(nvmlDeviceGetBrand, "brand")
NUMBER(nvmlDeviceGetPersistenceMode, "persistence")
NUMBER(nvmlDeviceGetComputeMode, "compute_mode")
NUMBER(nvmlDeviceGetDisplayMode, "display")
NUMBER(nvmlDeviceGetDisplayActive, "display")
NUMBER(nvmlDeviceGetNumaNodeId, "numa")
QUERY(nvmlDeviceGetPciInfo_v3, "pci", pci *out)
    memset(out, 0, sizeof *out);
    out->bus = 0x10 + (u32)d->gpu;
    bus_id(d->gpu, out->bus_id, sizeof out->bus_id);
    snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", out->bus);
    return OK;
}
ALIAS(nvmlDeviceGetPciInfo_v2, nvmlDeviceGetPciInfo_v3, (device d, pci *out), (d, out))
QUERY(nvmlDeviceGetCudaComputeCapability, "capability", int *major, int *minor)
    char value[16];
    if (!text(d, "capability", value, sizeof value)) return UNSUPPORTED;
    return sscanf(value, "%d.%d", major, minor) == 2 ? OK : UNSUPPORTED;
}
QUERY(nvmlDeviceGetEccMode, "ecc", u32 *current, u32 *pending)
    long long mode = number(d, "ecc", -1);
    if (mode < 0) return UNSUPPORTED;
    *current = *pending = (u32)mode;
    return OK;
}
QUERY(nvmlDeviceGetTotalEccErrors, "ecc", int kind, int counter, u64 *value)
    (void)counter;
    if (number(d, "ecc", -1) < 1) return UNSUPPORTED;
    *value = (u64)number(d, kind ? "ecc_uncorrected" : "ecc_corrected", 0);
    return OK;
}
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width")

/* ---- what a device does ----------------------------------------------------------------------- */

static u64 mib(device d, const char *key) { return (u64)number(d, key, 0) << 20; }
QUERY(nvmlDeviceGetMemoryInfo, "memory", memory *out)
    out->total = mib(d, "memory_mib");
    out->used = mib(d, "memory_used_mib") + mib(d, "memory_reserved_mib");
    out->free = out->total - out->used;
    return OK;
}
result nvmlDeviceGetMemoryInfo_v2(device d, memory_v2 *out) {
    result refused = allowed(d, "memory");
    if (!refused) refused = allowed(d, "memory_v2"); /* drivers before 510 lack this one */
    if (refused) return refused;
    out->total = mib(d, "memory_mib");
    out->used = mib(d, "memory_used_mib");
    out->reserved = mib(d, "memory_reserved_mib");
    out->free = out->total - out->used - out->reserved;
    return OK;
}
QUERY(nvmlDeviceGetUtilizationRates, "utilisation", utilisation *out)
    if (number(d, "mig", 0) > 0) return UNSUPPORTED; /* as real drivers answer for split GPUs */
    out->gpu = (u32)number(d, "utilisation", 0);
    out->memory = out->gpu / 2;
    return OK;
}
QUERY(nvmlDeviceGetTemperature, "temperature", int sensor, u32 *value)
    (void)sensor;
    *value = (u32)number(d, "temperature", 35);
    return OK;
}
QUERY(nvmlDeviceGetTemperatureV, "temperature", temperature *out) out->celsius = (int)number(d, "temperature", 35); return OK; }
QUERY(nvmlDeviceGetTemperatureThreshold, "threshold", int kind, u32 *value) *value = kind == 0 ? 92 : 87; return OK; }
NUMBER(nvmlDeviceGetPowerUsage, "power_mw")
NUMBER(nvmlDeviceGetPowerManagementLimit, "power_limit_mw")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit_mw")
NUMBER(nvmlDeviceGetFanSpeed, "fan")
NUMBER(nvmlDeviceGetPerformanceState, "performance_state")
QUERY(nvmlDeviceGetTotalEnergyConsumption, "energy", u64 *value) *value = (u64)number(d, "energy_mj", 0); return OK; }
QUERY(nvmlDeviceGetClockInfo, "clock", int kind, u32 *value)
    *value = (u32)number(d, kind == 2 ? "memory_clock" : "clock", 0);
    return OK;
}
QUERY(nvmlDeviceGetMaxClockInfo, "clock", int kind, u32 *value)
    *value = (u32)number(d, kind == 2 ? "memory_clock" : "clock_max", 0);
    return OK;
}
result nvmlDeviceGetCurrentClocksEventReasons(device d, u64 *value) {
    result refused = allowed(d, "throttle");
    if (!refused) refused = allowed(d, "event_reasons"); /* drivers before 535 lack this name */
    if (!refused) *value = (u64)number(d, "throttle", 0);
    return refused;
}
QUERY(nvmlDeviceGetCurrentClocksThrottleReasons, "throttle", u64 *value) *value = (u64)number(d, "throttle", 0); return OK; }
QUERY(nvmlDeviceGetPcieThroughput, "pcie", int counter, u32 *value) (void)counter; *value = (u32)number(d, "pcie_kb_per_s", 0); return OK; }
QUERY(nvmlDeviceGetEncoderUtilization, "encoder", u32 *percent, u32 *period) *percent = 0; *period = 100000; return OK; }
QUERY(nvmlDeviceGetDecoderUtilization, "decoder", u32 *percent, u32 *period) *percent = 0; *period = 100000; return OK; }

result nvmlDeviceGetComputeRunningProcesses_v3(device d, u32 *count, process *out) {
    result refused = allowed(d, "processes");
    if (refused) return refused;
    char list[2048] = "", *rest = list, *item;
    u32 found = 0, room = *count;
    text(d, "processes", list, sizeof list);
    while ((item = strtok_r(rest, ",", &rest))) {
        u32 pid;
        u64 size;
        if (sscanf(item, "%u:%llu", &pid, &size) != 2) continue;
        if (out && found < room) out[found] = (process){pid, size << 20, -1u, -1u};
        found++;
    }
    *count = found;
    return found > room ? TOO_SMALL : OK;
}
ALIAS(nvmlDeviceGetComputeRunningProcesses_v2, nvmlDeviceGetComputeRunningProcesses_v3, (device d, u32 *count, process *out), (d, count, out))
QUERY(nvmlDeviceGetGraphicsRunningProcesses_v3, "processes", u32 *count, process *out) (void)out; *count = 0; return OK; }
ALIAS(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlDeviceGetGraphicsRunningProcesses_v3, (device d, u32 *count, process *out), (d, count, out))
ALIAS(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlDeviceGetGraphicsRunningProcesses_v3, (device d, u32 *count, process *out), (d, count, out))

/* ---- how devices are joined ------------------------------------------------------------------- */

enum { TO_GPU = 0, TO_SWITCH = 2 };
static int peer_links(int a, int b) {
    char key[32];
    snprintf(key, sizeof key, "peer.%d.%d", a, b);
    return (int)number(NULL, key, 0);
}
/* The GPU at the far end of a link of a GPU that has no switch, or -1. */
static int far_end(int gpu, u32 link) {
    int first = 0;
    for (int other = 0; other < gpu_count(); other++) {
        first += peer_links(gpu, other);
        if ((int)link < first) return other;
    }
    return -1;
}
static int has_link(device d, u32 link) { return link < MAX_LINKS && (long long)link < number(d, "nvlinks", 0); }
QUERY(nvmlDeviceGetNvLinkState, "nvlink", u32 link, u32 *value)
    if (!has_link(d, link)) return UNSUPPORTED;
    *value = (long long)link < number(d, "nvlinks", 0) - number(d, "nvlinks_down", 0);
    return OK;
}
QUERY(nvmlDeviceGetNvLinkVersion, "nvlink", u32 link, u32 *value)
    if (!has_link(d, link)) return UNSUPPORTED;
    *value = (u32)number(d, "nvlink_version", 4);
    return OK;
}
QUERY(nvmlDeviceGetNvLinkRemoteDeviceType, "nvlink_end", u32 link, u32 *value)
    if (!has_link(d, link)) return UNSUPPORTED;
    *value = number(NULL, "nvswitch", 0) ? TO_SWITCH : TO_GPU;
    return OK;
}
QUERY(nvmlDeviceGetNvLinkRemotePciInfo_v2, "nvlink_end", u32 link, pci *out)
    int other = has_link(d, link) ? far_end(d->gpu, link) : -1;
    return other < 0 ? UNSUPPORTED : nvmlDeviceGetPciInfo_v3(whole(other), out);
}
QUERY(nvmlDeviceGetGpuFabricInfoV, "fabric", fabric *out)
    long long found = number(d, "fabric", -1);
    if (found < 0) return UNSUPPORTED;
    out->state = (unsigned char)found;
    return OK;
}
QUERY(nvmlDeviceGetTopologyCommonAncestor, "topology", device other, u32 *value)
    int a = d->gpu, b = other ? other->gpu : -1;
    char key[32];
    if (b < 0) return INVALID;
    snprintf(key, sizeof key, "ancestor.%d.%d", a < b ? a : b, a < b ? b : a);
    *value = a == b ? 0 : (u32)number(NULL, key, 50);
    return OK;
}
QUERY(nvmlDeviceGetP2PStatus, "peer", device other, int kind, u32 *value) (void)other; (void)kind; *value = (u32)number(NULL, "peer_status", 0); return OK; }
