/* Descriptors and executors, and the functions of operators that are outside the two phases. */
#ifndef PORTOLAN_ACLNN_H
#define PORTOLAN_ACLNN_H

#include "acl.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t aclnnStatus;
typedef struct aclTensor aclTensor;
typedef struct aclScalar aclScalar;
typedef struct aclIntArray aclIntArray;
typedef struct aclFloatArray aclFloatArray;
typedef struct aclBoolArray aclBoolArray;
typedef struct aclTensorList aclTensorList;
typedef struct aclScalarList aclScalarList;
typedef struct aclOpExecutor aclOpExecutor;

aclTensor *aclCreateTensor(const int64_t *viewDims, uint64_t nView, aclDataType dt, const int64_t *stride,
    int64_t offset, aclFormat fmt, const int64_t *storageDims, uint64_t nStorage, void *deviceData);
aclScalar *aclCreateScalar(void *value, aclDataType dt);
aclIntArray *aclCreateIntArray(const int64_t *v, uint64_t n);
aclFloatArray *aclCreateFloatArray(const float *v, uint64_t n);
aclBoolArray *aclCreateBoolArray(const bool *v, uint64_t n);
aclTensorList *aclCreateTensorList(const aclTensor *const *v, uint64_t n);
aclScalarList *aclCreateScalarList(const aclScalar *const *v, uint64_t n);
aclnnStatus aclDestroyTensor(const aclTensor *);
aclnnStatus aclDestroyScalar(const aclScalar *);
aclnnStatus aclDestroyIntArray(const aclIntArray *);
aclnnStatus aclDestroyFloatArray(const aclFloatArray *);
aclnnStatus aclDestroyBoolArray(const aclBoolArray *);
aclnnStatus aclDestroyTensorList(const aclTensorList *);
aclnnStatus aclDestroyScalarList(const aclScalarList *);
aclnnStatus aclInitTensor(aclTensor *t, const int64_t *viewDims, uint64_t nView, aclDataType dt, const int64_t *stride,
    int64_t offset, aclFormat fmt, const int64_t *storageDims, uint64_t nStorage, void *deviceData);
aclnnStatus aclGetViewShape(const aclTensor *, int64_t **dims, uint64_t *n);
aclnnStatus aclGetStorageShape(const aclTensor *, int64_t **dims, uint64_t *n);
aclnnStatus aclGetViewStrides(const aclTensor *, int64_t **s, uint64_t *n);
aclnnStatus aclGetViewOffset(const aclTensor *, int64_t*);
aclnnStatus aclGetFormat(const aclTensor *, aclFormat*);
aclnnStatus aclGetDataType(const aclTensor *, aclDataType*);
aclnnStatus aclGetTensorListSize(const aclTensorList*, uint64_t*);
aclnnStatus aclGetIntArraySize(const aclIntArray*, uint64_t*);
aclnnStatus aclGetFloatArraySize(const aclFloatArray*, uint64_t*);
aclnnStatus aclGetBoolArraySize(const aclBoolArray*, uint64_t*);
aclnnStatus aclGetScalarListSize(const aclScalarList*, uint64_t*);
aclnnStatus aclGetRawTensorAddr(const aclTensor *, void **);
aclnnStatus aclSetRawTensorAddr(aclTensor *, void *);
aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor*);
aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor*);
aclnnStatus aclSetTensorAddr(aclOpExecutor*, size_t index, aclTensor *, void *addr);
aclnnStatus aclSetInputTensorAddr(aclOpExecutor*, size_t index, aclTensor *, void *addr);
aclnnStatus aclSetOutputTensorAddr(aclOpExecutor*, size_t index, aclTensor *, void *addr);
aclnnStatus AclSetTensorAddr(aclOpExecutor*, size_t index, aclTensor *, void *addr);
aclnnStatus AclSetInputTensorAddr(aclOpExecutor*, size_t index, aclTensor *, void *addr);
aclnnStatus AclSetOutputTensorAddr(aclOpExecutor*, size_t index, aclTensor *, void *addr);
aclnnStatus aclSetDynamicTensorAddr(aclOpExecutor*, size_t irIndex, size_t relIndex, aclTensorList*,
    void *addr);
aclnnStatus aclSetDynamicInputTensorAddr(aclOpExecutor*, size_t irIndex, size_t relIndex, aclTensorList*,
    void *addr);
aclnnStatus aclSetDynamicOutputTensorAddr(aclOpExecutor*, size_t irIndex, size_t relIndex, aclTensorList*,
    void *addr);
aclnnStatus AclSetDynamicTensorAddr(aclOpExecutor*, size_t irIndex, size_t relIndex, aclTensorList*,
    void *addr);
aclnnStatus AclSetDynamicInputTensorAddr(aclOpExecutor*, size_t irIndex, size_t relIndex, aclTensorList*,
    void *addr);
aclnnStatus AclSetDynamicOutputTensorAddr(aclOpExecutor*, size_t irIndex, size_t relIndex, aclTensorList*,
    void *addr);
aclnnStatus aclnnInit(const char *configPath);
aclnnStatus aclnnFinalize(void);
aclnnStatus aclnnCalculateMatmulWeightSizeV2(const aclIntArray *shape, aclDataType dt, uint64_t *elements);
aclnnStatus aclnnNpuFormatCastCalculateSizeAndFormat(const aclTensor *src, int dstFormat, int additionalDtype, int64_t **dstShape, uint64_t *dstShapeSize, int *actualFormat);
aclnnStatus aclnnTransQuantParam(const float *scale, uint64_t nScale, const float *offset, uint64_t nOffset,
    uint64_t **quantParam, uint64_t *nQuantParam);

#ifdef __cplusplus
}
#endif

#endif
