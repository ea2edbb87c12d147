/* Collectives. `HcclSetConfig` is left out: what its union holds is not known here. */
#ifndef PORTOLAN_HCCL_H
#define PORTOLAN_HCCL_H

#include "acl.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef void *HcclComm;

typedef enum HcclResult {
    HCCL_SUCCESS = 0,
    HCCL_E_PARA = 1,
    HCCL_E_PTR = 2,
    HCCL_E_MEMORY = 3,
    HCCL_E_INTERNAL = 4,
    HCCL_E_NOT_SUPPORT = 5,
    HCCL_E_NOT_FOUND = 6,
    HCCL_E_UNAVAIL = 7,
    HCCL_E_SYSCALL = 8,
    HCCL_E_TIMEOUT = 9,
    HCCL_E_TCP_CONNECT = 11,
    HCCL_E_ROCE_CONNECT = 12,
    HCCL_E_RUNTIME = 15,
    HCCL_E_DRV = 16,
    HCCL_E_NETWORK = 19,
    HCCL_E_AGAIN = 20,
    HCCL_E_REMOTE = 21,
    HCCL_E_SUSPENDING = 22,
    HCCL_E_OPRETRY_FAIL = 23,
    HCCL_E_OOM = 24,
} HcclResult;

typedef enum HcclReduceOp {
    HCCL_REDUCE_SUM = 0,
    HCCL_REDUCE_PROD = 1,
    HCCL_REDUCE_MAX = 2,
    HCCL_REDUCE_MIN = 3,
} HcclReduceOp;

typedef enum HcclDataType {
    HCCL_DATA_TYPE_INT8 = 0,
    HCCL_DATA_TYPE_INT16 = 1,
    HCCL_DATA_TYPE_INT32 = 2,
    HCCL_DATA_TYPE_FP16 = 3,
    HCCL_DATA_TYPE_FP32 = 4,
    HCCL_DATA_TYPE_INT64 = 5,
    HCCL_DATA_TYPE_UINT64 = 6,
    HCCL_DATA_TYPE_UINT8 = 7,
    HCCL_DATA_TYPE_UINT16 = 8,
    HCCL_DATA_TYPE_UINT32 = 9,
    HCCL_DATA_TYPE_FP64 = 10,
    HCCL_DATA_TYPE_BFP16 = 11,
    HCCL_DATA_TYPE_INT128 = 12,
    HCCL_DATA_TYPE_HIF8 = 14,
    HCCL_DATA_TYPE_FP8E4M3 = 15,
    HCCL_DATA_TYPE_FP8E5M2 = 16,
    HCCL_DATA_TYPE_FP8E8M0 = 17,
} HcclDataType;

typedef enum HcclSendRecvType {
    HCCL_SEND = 0,
    HCCL_RECV = 1,
} HcclSendRecvType;

typedef struct HcclRootInfo {
    char internal[4108];
} HcclRootInfo;

/* Grows with versions; who fills one in lays it out for the version at hand. */
typedef struct HcclCommConfig HcclCommConfig;

typedef struct HcclSendRecvItem {
    HcclSendRecvType sendRecvType;
    void *buf;
    uint64_t count;
    HcclDataType dataType;
    uint32_t remoteRank;
} HcclSendRecvItem;

HcclResult HcclGetRootInfo(HcclRootInfo *info);
HcclResult HcclCommInitRootInfo(uint32_t nRanks, const HcclRootInfo *info, uint32_t rank, HcclComm *comm);
HcclResult HcclCommInitRootInfoConfig(uint32_t nRanks, const HcclRootInfo *info, uint32_t rank, const
    HcclCommConfig *cfg, HcclComm *comm);
HcclResult HcclCommInitAll(uint32_t ndev, int32_t *devices, HcclComm *comms);
HcclResult HcclCommInitClusterInfo(const char *rankTableFile, uint32_t rank, HcclComm *comm);
HcclResult HcclCommInitClusterInfoConfig(const char *rankTableFile, uint32_t rank, HcclCommConfig *cfg,
    HcclComm *comm);
HcclResult HcclCreateSubCommConfig(HcclComm *comm, uint32_t rankNum, uint32_t *rankIds, uint64_t subCommId,
    uint32_t subCommRankId, HcclCommConfig *cfg, HcclComm *sub);
HcclResult HcclGetRankSize(HcclComm, uint32_t*);
HcclResult HcclGetRankId(HcclComm, uint32_t*);
HcclResult HcclGetCommName(HcclComm, char *name);
HcclResult HcclGetCommAsyncError(HcclComm, HcclResult*);
const char *HcclGetErrorString(HcclResult);
uint32_t HcclGetCommConfigCapability(void);
HcclResult HcclCommSuspend(HcclComm);
HcclResult HcclCommResume(HcclComm);
HcclResult HcclCommDestroy(HcclComm);
HcclResult HcclAllReduce(void *send, void *recv, uint64_t count, HcclDataType, HcclReduceOp, HcclComm,
    aclrtStream);
HcclResult HcclBroadcast(void *buf, uint64_t count, HcclDataType, uint32_t root, HcclComm, aclrtStream);
HcclResult HcclReduce(void *send, void *recv, uint64_t count, HcclDataType, HcclReduceOp, uint32_t root,
    HcclComm, aclrtStream);
HcclResult HcclReduceScatter(void *send, void *recv, uint64_t recvCount, HcclDataType, HcclReduceOp,
    HcclComm, aclrtStream);
HcclResult HcclAllGather(void *send, void *recv, uint64_t sendCount, HcclDataType, HcclComm, aclrtStream);
HcclResult HcclScatter(void *send, void *recv, uint64_t recvCount, HcclDataType, uint32_t root, HcclComm,
    aclrtStream);
HcclResult HcclReduceScatterV(void *send, const void *sendCounts, const void *sendDispls, void *recv,
    uint64_t recvCount, HcclDataType, HcclReduceOp, HcclComm, aclrtStream);
HcclResult HcclAllGatherV(void *send, uint64_t sendCount, void *recv, const void *recvCounts, const void
    *recvDispls, HcclDataType, HcclComm, aclrtStream);
HcclResult HcclAlltoAll(const void *send, uint64_t sendCount, HcclDataType, const void *recv, uint64_t
    recvCount, HcclDataType, HcclComm, aclrtStream);
HcclResult HcclAlltoAllV(const void *send, const void *sendCounts, const void *sdispls, HcclDataType, const
    void *recv, const void *recvCounts, const void *rdispls, HcclDataType, HcclComm, aclrtStream);
HcclResult HcclAlltoAllVC(const void *send, const void *sendCountMatrix, HcclDataType, const void *recv,
    HcclDataType, HcclComm, aclrtStream);
HcclResult HcclSend(void *buf, uint64_t count, HcclDataType, uint32_t dest, HcclComm, aclrtStream);
HcclResult HcclRecv(void *buf, uint64_t count, HcclDataType, uint32_t src, HcclComm, aclrtStream);
HcclResult HcclBatchSendRecv(HcclSendRecvItem *items, uint32_t n, HcclComm, aclrtStream);
HcclResult HcclBarrier(HcclComm, aclrtStream);
HcclResult HcclGroupStart(void);
HcclResult HcclGroupEnd(void);

#ifdef __cplusplus
}
#endif

#endif
