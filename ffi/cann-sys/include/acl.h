/* The AscendCL runtime: the part that is used here. Facts of the interface, restated as plain C. */
#ifndef PORTOLAN_ACL_H
#define PORTOLAN_ACL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int aclError;
typedef uint16_t aclFloat16;
typedef void *aclrtStream;
typedef void *aclrtEvent;
typedef void *aclrtContext;
typedef void *aclrtNotify;
typedef void *aclmdlRI;
typedef void *aclrtTaskGrp;
typedef void *aclrtDrvMemHandle;

typedef enum aclDataType {
    ACL_DT_UNDEFINED = -1,
    ACL_FLOAT = 0,
    ACL_FLOAT16 = 1,
    ACL_INT8 = 2,
    ACL_INT32 = 3,
    ACL_UINT8 = 4,
    ACL_INT16 = 6,
    ACL_UINT16 = 7,
    ACL_UINT32 = 8,
    ACL_INT64 = 9,
    ACL_UINT64 = 10,
    ACL_DOUBLE = 11,
    ACL_BOOL = 12,
    ACL_STRING = 13,
    ACL_COMPLEX64 = 16,
    ACL_COMPLEX128 = 17,
    ACL_BF16 = 27,
    ACL_INT4 = 29,
    ACL_UINT1 = 30,
    ACL_COMPLEX32 = 33,
    ACL_HIFLOAT8 = 34,
    ACL_FLOAT8_E5M2 = 35,
    ACL_FLOAT8_E4M3FN = 36,
    ACL_FLOAT8_E8M0 = 37,
    ACL_FLOAT6_E3M2 = 38,
    ACL_FLOAT6_E2M3 = 39,
    ACL_FLOAT4_E2M1 = 40,
    ACL_FLOAT4_E1M2 = 41,
} aclDataType;

typedef enum aclFormat {
    ACL_FORMAT_UNDEFINED = -1,
    ACL_FORMAT_NCHW = 0,
    ACL_FORMAT_NHWC = 1,
    ACL_FORMAT_ND = 2,
    ACL_FORMAT_NC1HWC0 = 3,
    ACL_FORMAT_FRACTAL_Z = 4,
    ACL_FORMAT_NC1HWC0_C04 = 12,
    ACL_FORMAT_HWCN = 16,
    ACL_FORMAT_NDHWC = 27,
    ACL_FORMAT_FRACTAL_NZ = 29,
    ACL_FORMAT_NCDHW = 30,
    ACL_FORMAT_NDC1HWC0 = 32,
    ACL_FRACTAL_Z_3D = 33,
    ACL_FORMAT_NC = 35,
    ACL_FORMAT_NCL = 47,
    ACL_FORMAT_FRACTAL_NZ_C0_16 = 50,
    ACL_FORMAT_FRACTAL_NZ_C0_32 = 51,
    ACL_FORMAT_FRACTAL_NZ_C0_2 = 52,
    ACL_FORMAT_FRACTAL_NZ_C0_4 = 53,
    ACL_FORMAT_FRACTAL_NZ_C0_8 = 54,
} aclFormat;

typedef enum aclrtMemMallocPolicy {
    ACL_MEM_MALLOC_HUGE_FIRST = 0,
    ACL_MEM_MALLOC_HUGE_ONLY = 1,
    ACL_MEM_MALLOC_NORMAL_ONLY = 2,
    ACL_MEM_MALLOC_HUGE_FIRST_P2P = 3,
    ACL_MEM_MALLOC_HUGE_ONLY_P2P = 4,
    ACL_MEM_MALLOC_NORMAL_ONLY_P2P = 5,
    ACL_MEM_MALLOC_HUGE1G_ONLY = 6,
    ACL_MEM_MALLOC_HUGE1G_ONLY_P2P = 7,
} aclrtMemMallocPolicy;

typedef enum aclrtMemcpyKind {
    ACL_MEMCPY_HOST_TO_HOST = 0,
    ACL_MEMCPY_HOST_TO_DEVICE = 1,
    ACL_MEMCPY_DEVICE_TO_HOST = 2,
    ACL_MEMCPY_DEVICE_TO_DEVICE = 3,
    ACL_MEMCPY_DEFAULT = 4,
    ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE = 5,
    ACL_MEMCPY_INNER_DEVICE_TO_DEVICE = 6,
    ACL_MEMCPY_INTER_DEVICE_TO_DEVICE = 7,
} aclrtMemcpyKind;

typedef enum aclrtMemAttr {
    ACL_DDR_MEM = 0,
    ACL_HBM_MEM = 1,
    ACL_DDR_MEM_HUGE = 2,
    ACL_DDR_MEM_NORMAL = 3,
    ACL_HBM_MEM_HUGE = 4,
    ACL_HBM_MEM_NORMAL = 5,
    ACL_MEM_NORMAL = 12,
    ACL_MEM_HUGE = 13,
    ACL_MEM_HUGE1G = 14,
} aclrtMemAttr;

typedef enum aclrtRunMode {
    ACL_DEVICE = 0,
    ACL_HOST = 1,
} aclrtRunMode;

typedef enum aclrtStreamStatus {
    ACL_STREAM_STATUS_COMPLETE = 0,
    ACL_STREAM_STATUS_NOT_READY = 1,
} aclrtStreamStatus;

typedef enum aclrtEventRecordedStatus {
    ACL_EVENT_RECORDED_STATUS_NOT_READY = 0,
    ACL_EVENT_RECORDED_STATUS_COMPLETE = 1,
} aclrtEventRecordedStatus;

typedef enum aclrtEventWaitStatus {
    ACL_EVENT_WAIT_STATUS_COMPLETE = 0,
    ACL_EVENT_WAIT_STATUS_NOT_READY = 1,
} aclrtEventWaitStatus;

typedef enum aclSysParamOpt {
    ACL_OPT_DETERMINISTIC = 0,
    ACL_OPT_ENABLE_DEBUG_KERNEL = 1,
    ACL_OPT_STRONG_CONSISTENCY = 2,
} aclSysParamOpt;

typedef enum aclmdlRICaptureMode {
    ACL_MODEL_RI_CAPTURE_MODE_GLOBAL = 0,
    ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL = 1,
    ACL_MODEL_RI_CAPTURE_MODE_RELAXED = 2,
} aclmdlRICaptureMode;

typedef enum aclmdlRICaptureStatus {
    ACL_MODEL_RI_CAPTURE_STATUS_NONE = 0,
    ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE = 1,
    ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED = 2,
} aclmdlRICaptureStatus;

typedef enum aclrtMemLocationType {
    ACL_MEM_LOCATION_TYPE_HOST = 0,
    ACL_MEM_LOCATION_TYPE_DEVICE = 1,
    ACL_MEM_LOCATION_TYPE_UNREGISTERED = 2,
    ACL_MEM_LOCATION_TYPE_MANAGED = 3,
    ACL_MEM_LOCATION_TYPE_HOST_NUMA = 4,
} aclrtMemLocationType;

typedef enum aclrtMemAllocationType {
    ACL_MEM_ALLOCATION_TYPE_PINNED = 0,
} aclrtMemAllocationType;

typedef enum aclrtMemHandleType {
    ACL_MEM_HANDLE_TYPE_NONE = 0,
    ACL_MEM_HANDLE_TYPE_POSIX = 2,
} aclrtMemHandleType;

typedef enum aclrtMemGranularityOptions {
    ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM = 0,
    ACL_RT_MEM_ALLOC_GRANULARITY_RECOMMENDED = 1,
} aclrtMemGranularityOptions;

typedef enum aclrtDevAttr {
    ACL_DEV_ATTR_AICPU_CORE_NUM = 1,
    ACL_DEV_ATTR_AICORE_CORE_NUM = 101,
    ACL_DEV_ATTR_CUBE_CORE_NUM = 102,
    ACL_DEV_ATTR_VECTOR_CORE_NUM = 201,
    ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE = 301,
    ACL_DEV_ATTR_L2_CACHE_SIZE = 302,
    ACL_DEV_ATTR_IS_VIRTUAL = 501,
    ACL_DEV_ATTR_NPU_ARCH = 601,
} aclrtDevAttr;

/* Enumerations whose values no caller here needs. */
typedef int aclrtLastErrLevel;
typedef int aclDeviceInfo;
typedef int aclrtHostRegisterType;
typedef int aclrtCallbackBlockType;

#define ACL_EVENT_SYNC 0x01
#define ACL_EVENT_CAPTURE_STREAM_PROGRESS 0x02
#define ACL_EVENT_TIME_LINE 0x08
#define ACL_EVENT_DEVICE_USE_ONLY 0x10
#define ACL_EVENT_EXTERNAL 0x20
#define ACL_EVENT_IPC 0x40
#define ACL_STREAM_FAST_LAUNCH 0x01
#define ACL_STREAM_FAST_SYNC 0x02
#define ACL_STREAM_PERSISTENT 0x04
#define ACL_STREAM_HUGE 0x08
#define ACL_STREAM_CPU_SCHEDULE 0x10
#define ACL_STREAM_DEVICE_USE_ONLY 0x20
#define ACL_CONTINUE_ON_FAILURE 0
#define ACL_STOP_ON_FAILURE 1

typedef struct aclrtMemLocation {
    uint32_t id;
    aclrtMemLocationType type;
} aclrtMemLocation;

typedef struct aclrtPhysicalMemProp {
    aclrtMemHandleType handleType;
    aclrtMemAllocationType allocationType;
    aclrtMemAttr memAttr;
    aclrtMemLocation location;
    uint64_t reserve;
} aclrtPhysicalMemProp;

typedef struct aclrtPtrAttributes {
    aclrtMemLocation location;
    uint32_t pageSize;
    uint32_t rsv[4];
} aclrtPtrAttributes;

typedef struct aclrtMallocAttribute aclrtMallocAttribute;

typedef struct aclrtMallocConfig {
    aclrtMallocAttribute *attrs;
    size_t numAttrs;
} aclrtMallocConfig;

aclError aclInit(const char *configPath);
aclError aclFinalize(void);
aclError aclFinalizeReference(uint64_t *refCount);
const char *aclGetRecentErrMsg(void);
const char *aclrtGetSocName(void);
aclError aclrtGetVersion(int32_t *major, int32_t *minor, int32_t *patch);
aclError aclsysGetVersionStr(char *pkgName, char *versionStr);
aclError aclsysGetVersionNum(char *pkgName, int32_t *versionNum);
aclError aclrtPeekAtLastError(aclrtLastErrLevel level);
aclError aclrtGetLastError(aclrtLastErrLevel level);
aclError aclrtGetDeviceCount(uint32_t *count);
aclError aclrtSetDevice(int32_t id);
aclError aclrtGetDevice(int32_t *id);
aclError aclrtResetDevice(int32_t id);
aclError aclrtResetDeviceForce(int32_t id);
aclError aclrtGetRunMode(aclrtRunMode *mode);
aclError aclrtSynchronizeDevice(void);
aclError aclrtSynchronizeDeviceWithTimeout(int32_t ms);
aclError aclrtGetDeviceInfo(uint32_t id, aclrtDevAttr attr, int64_t *value);
aclError aclGetDeviceCapability(uint32_t id, aclDeviceInfo info, int64_t *value);
aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t dev, int32_t peer);
aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags);
aclError aclrtDeviceDisablePeerAccess(int32_t peer);
aclError aclrtSetSysParamOpt(aclSysParamOpt opt, int64_t v);
aclError aclrtCtxSetSysParamOpt(aclSysParamOpt opt, int64_t v);
aclError aclrtSetOpWaitTimeout(uint32_t s);
aclError aclrtSetOpExecuteTimeOut(uint32_t s);
aclError aclrtCreateContext(aclrtContext *ctx, int32_t id);
aclError aclrtDestroyContext(aclrtContext ctx);
aclError aclrtSetCurrentContext(aclrtContext ctx);
aclError aclrtGetCurrentContext(aclrtContext *ctx);
aclError aclrtMalloc(void **p, size_t size, aclrtMemMallocPolicy policy);
aclError aclrtMallocWithCfg(void **p, size_t size, aclrtMemMallocPolicy policy, aclrtMallocConfig *cfg);
aclError aclrtFree(void *p);
aclError aclrtFreeWithDevSync(void *p);
aclError aclrtMallocHost(void **p, size_t size);
aclError aclrtFreeHost(void *p);
aclError aclrtHostRegister(void *p, uint64_t size, aclrtHostRegisterType t, void **dev);
aclError aclrtHostUnregister(void *p);
aclError aclrtMemcpy(void *dst, size_t dstMax, const void *src, size_t n, aclrtMemcpyKind kind);
aclError aclrtMemcpyAsync(void *dst, size_t dstMax, const void *src, size_t n, aclrtMemcpyKind kind,
    aclrtStream s);
aclError aclrtMemcpy2d(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t
    height, aclrtMemcpyKind k);
aclError aclrtMemcpy2dAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t
    height, aclrtMemcpyKind k, aclrtStream s);
aclError aclrtMemset(void *p, size_t maxCount, int32_t value, size_t n);
aclError aclrtMemsetAsync(void *p, size_t maxCount, int32_t value, size_t n, aclrtStream s);
aclError aclrtGetMemInfo(aclrtMemAttr attr, size_t *free, size_t *total);
aclError aclrtPointerGetAttributes(const void *p, aclrtPtrAttributes *a);
aclError aclrtMemGetAllocationGranularity(aclrtPhysicalMemProp *prop, aclrtMemGranularityOptions opt, size_t
    *g);
aclError aclrtReserveMemAddress(void **va, size_t size, size_t align, void *expect, uint64_t flags);
aclError aclrtReleaseMemAddress(void *va);
aclError aclrtMallocPhysical(aclrtDrvMemHandle *h, size_t size, const aclrtPhysicalMemProp *prop, uint64_t
    flags);
aclError aclrtFreePhysical(aclrtDrvMemHandle h);
aclError aclrtMapMem(void *va, size_t size, size_t offset, aclrtDrvMemHandle h, uint64_t flags);
aclError aclrtUnmapMem(void *va);
aclError aclrtCreateStream(aclrtStream *s);
aclError aclrtCreateStreamWithConfig(aclrtStream *s, uint32_t prio, uint32_t flag);
aclError aclrtDestroyStream(aclrtStream s);
aclError aclrtDestroyStreamForce(aclrtStream s);
aclError aclrtSynchronizeStream(aclrtStream s);
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream s, int32_t ms);
aclError aclrtStreamQuery(aclrtStream s, aclrtStreamStatus *st);
aclError aclrtStreamAbort(aclrtStream s);
aclError aclrtStreamWaitEvent(aclrtStream s, aclrtEvent e);
aclError aclrtStreamWaitEventWithTimeout(aclrtStream s, aclrtEvent e, int32_t seconds);
aclError aclrtSetStreamFailureMode(aclrtStream s, uint64_t mode);
aclError aclrtCreateEvent(aclrtEvent *e);
aclError aclrtCreateEventWithFlag(aclrtEvent *e, uint32_t flag);
aclError aclrtCreateEventExWithFlag(aclrtEvent *e, uint32_t flag);
aclError aclrtDestroyEvent(aclrtEvent e);
aclError aclrtRecordEvent(aclrtEvent e, aclrtStream s);
aclError aclrtResetEvent(aclrtEvent e, aclrtStream s);
aclError aclrtQueryEventStatus(aclrtEvent e, aclrtEventRecordedStatus *st);
aclError aclrtQueryEventWaitStatus(aclrtEvent e, aclrtEventWaitStatus *st);
aclError aclrtSynchronizeEvent(aclrtEvent e);
aclError aclrtSynchronizeEventWithTimeout(aclrtEvent e, int32_t ms);
aclError aclrtEventElapsedTime(float *ms, aclrtEvent start, aclrtEvent end);
aclError aclrtEventGetTimestamp(aclrtEvent e, uint64_t *us);
aclError aclrtLaunchHostFunc(aclrtStream s, void (*fn)(void *), void *args);
aclError aclrtLaunchCallback(void (*fn)(void *), void *user, aclrtCallbackBlockType t, aclrtStream s);
aclError aclmdlRICaptureBegin(aclrtStream s, aclmdlRICaptureMode mode);
aclError aclmdlRICaptureGetInfo(aclrtStream s, aclmdlRICaptureStatus *st, aclmdlRI *ri);
aclError aclmdlRICaptureEnd(aclrtStream s, aclmdlRI *ri);
aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode *mode);
aclError aclmdlRIExecuteAsync(aclmdlRI ri, aclrtStream s);
aclError aclmdlRIExecute(aclmdlRI ri, int32_t timeoutMs);
aclError aclmdlRIDestroy(aclmdlRI ri);
aclError aclmdlRIDebugPrint(aclmdlRI ri);
aclError aclmdlRICaptureTaskGrpBegin(aclrtStream s);
aclError aclmdlRICaptureTaskGrpEnd(aclrtStream s, aclrtTaskGrp *h);
aclError aclmdlRICaptureTaskUpdateBegin(aclrtStream s, aclrtTaskGrp h);
aclError aclmdlRICaptureTaskUpdateEnd(aclrtStream s);
aclError aclrtMallocAlign32(void **p, size_t size, aclrtMemMallocPolicy policy);
aclError aclrtMallocCached(void **p, size_t size, aclrtMemMallocPolicy policy);

#ifdef __cplusplus
}
#endif

#endif
