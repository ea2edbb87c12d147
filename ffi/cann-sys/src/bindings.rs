// Made by bindings.py from include/*.h; not written by hand.

pub const ACL_EVENT_SYNC: u32 = 1;
pub const ACL_EVENT_CAPTURE_STREAM_PROGRESS: u32 = 2;
pub const ACL_EVENT_TIME_LINE: u32 = 8;
pub const ACL_EVENT_DEVICE_USE_ONLY: u32 = 16;
pub const ACL_EVENT_EXTERNAL: u32 = 32;
pub const ACL_EVENT_IPC: u32 = 64;
pub const ACL_STREAM_FAST_LAUNCH: u32 = 1;
pub const ACL_STREAM_FAST_SYNC: u32 = 2;
pub const ACL_STREAM_PERSISTENT: u32 = 4;
pub const ACL_STREAM_HUGE: u32 = 8;
pub const ACL_STREAM_CPU_SCHEDULE: u32 = 16;
pub const ACL_STREAM_DEVICE_USE_ONLY: u32 = 32;
pub const ACL_CONTINUE_ON_FAILURE: u32 = 0;
pub const ACL_STOP_ON_FAILURE: u32 = 1;
pub type aclError = ::core::ffi::c_int;
pub type aclFloat16 = u16;
pub type aclrtStream = *mut ::core::ffi::c_void;
pub type aclrtEvent = *mut ::core::ffi::c_void;
pub type aclrtContext = *mut ::core::ffi::c_void;
pub type aclrtNotify = *mut ::core::ffi::c_void;
pub type aclmdlRI = *mut ::core::ffi::c_void;
pub type aclrtTaskGrp = *mut ::core::ffi::c_void;
pub type aclrtDrvMemHandle = *mut ::core::ffi::c_void;
pub const ACL_DT_UNDEFINED: aclDataType = -1;
pub const ACL_FLOAT: aclDataType = 0;
pub const ACL_FLOAT16: aclDataType = 1;
pub const ACL_INT8: aclDataType = 2;
pub const ACL_INT32: aclDataType = 3;
pub const ACL_UINT8: aclDataType = 4;
pub const ACL_INT16: aclDataType = 6;
pub const ACL_UINT16: aclDataType = 7;
pub const ACL_UINT32: aclDataType = 8;
pub const ACL_INT64: aclDataType = 9;
pub const ACL_UINT64: aclDataType = 10;
pub const ACL_DOUBLE: aclDataType = 11;
pub const ACL_BOOL: aclDataType = 12;
pub const ACL_STRING: aclDataType = 13;
pub const ACL_COMPLEX64: aclDataType = 16;
pub const ACL_COMPLEX128: aclDataType = 17;
pub const ACL_BF16: aclDataType = 27;
pub const ACL_INT4: aclDataType = 29;
pub const ACL_UINT1: aclDataType = 30;
pub const ACL_COMPLEX32: aclDataType = 33;
pub const ACL_HIFLOAT8: aclDataType = 34;
pub const ACL_FLOAT8_E5M2: aclDataType = 35;
pub const ACL_FLOAT8_E4M3FN: aclDataType = 36;
pub const ACL_FLOAT8_E8M0: aclDataType = 37;
pub const ACL_FLOAT6_E3M2: aclDataType = 38;
pub const ACL_FLOAT6_E2M3: aclDataType = 39;
pub const ACL_FLOAT4_E2M1: aclDataType = 40;
pub const ACL_FLOAT4_E1M2: aclDataType = 41;
pub type aclDataType = ::core::ffi::c_int;
pub const ACL_FORMAT_UNDEFINED: aclFormat = -1;
pub const ACL_FORMAT_NCHW: aclFormat = 0;
pub const ACL_FORMAT_NHWC: aclFormat = 1;
pub const ACL_FORMAT_ND: aclFormat = 2;
pub const ACL_FORMAT_NC1HWC0: aclFormat = 3;
pub const ACL_FORMAT_FRACTAL_Z: aclFormat = 4;
pub const ACL_FORMAT_NC1HWC0_C04: aclFormat = 12;
pub const ACL_FORMAT_HWCN: aclFormat = 16;
pub const ACL_FORMAT_NDHWC: aclFormat = 27;
pub const ACL_FORMAT_FRACTAL_NZ: aclFormat = 29;
pub const ACL_FORMAT_NCDHW: aclFormat = 30;
pub const ACL_FORMAT_NDC1HWC0: aclFormat = 32;
pub const ACL_FRACTAL_Z_3D: aclFormat = 33;
pub const ACL_FORMAT_NC: aclFormat = 35;
pub const ACL_FORMAT_NCL: aclFormat = 47;
pub const ACL_FORMAT_FRACTAL_NZ_C0_16: aclFormat = 50;
pub const ACL_FORMAT_FRACTAL_NZ_C0_32: aclFormat = 51;
pub const ACL_FORMAT_FRACTAL_NZ_C0_2: aclFormat = 52;
pub const ACL_FORMAT_FRACTAL_NZ_C0_4: aclFormat = 53;
pub const ACL_FORMAT_FRACTAL_NZ_C0_8: aclFormat = 54;
pub type aclFormat = ::core::ffi::c_int;
pub const ACL_MEM_MALLOC_HUGE_FIRST: aclrtMemMallocPolicy = 0;
pub const ACL_MEM_MALLOC_HUGE_ONLY: aclrtMemMallocPolicy = 1;
pub const ACL_MEM_MALLOC_NORMAL_ONLY: aclrtMemMallocPolicy = 2;
pub const ACL_MEM_MALLOC_HUGE_FIRST_P2P: aclrtMemMallocPolicy = 3;
pub const ACL_MEM_MALLOC_HUGE_ONLY_P2P: aclrtMemMallocPolicy = 4;
pub const ACL_MEM_MALLOC_NORMAL_ONLY_P2P: aclrtMemMallocPolicy = 5;
pub const ACL_MEM_MALLOC_HUGE1G_ONLY: aclrtMemMallocPolicy = 6;
pub const ACL_MEM_MALLOC_HUGE1G_ONLY_P2P: aclrtMemMallocPolicy = 7;
pub type aclrtMemMallocPolicy = ::core::ffi::c_uint;
pub const ACL_MEMCPY_HOST_TO_HOST: aclrtMemcpyKind = 0;
pub const ACL_MEMCPY_HOST_TO_DEVICE: aclrtMemcpyKind = 1;
pub const ACL_MEMCPY_DEVICE_TO_HOST: aclrtMemcpyKind = 2;
pub const ACL_MEMCPY_DEVICE_TO_DEVICE: aclrtMemcpyKind = 3;
pub const ACL_MEMCPY_DEFAULT: aclrtMemcpyKind = 4;
pub const ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE: aclrtMemcpyKind = 5;
pub const ACL_MEMCPY_INNER_DEVICE_TO_DEVICE: aclrtMemcpyKind = 6;
pub const ACL_MEMCPY_INTER_DEVICE_TO_DEVICE: aclrtMemcpyKind = 7;
pub type aclrtMemcpyKind = ::core::ffi::c_uint;
pub const ACL_DDR_MEM: aclrtMemAttr = 0;
pub const ACL_HBM_MEM: aclrtMemAttr = 1;
pub const ACL_DDR_MEM_HUGE: aclrtMemAttr = 2;
pub const ACL_DDR_MEM_NORMAL: aclrtMemAttr = 3;
pub const ACL_HBM_MEM_HUGE: aclrtMemAttr = 4;
pub const ACL_HBM_MEM_NORMAL: aclrtMemAttr = 5;
pub const ACL_MEM_NORMAL: aclrtMemAttr = 12;
pub const ACL_MEM_HUGE: aclrtMemAttr = 13;
pub const ACL_MEM_HUGE1G: aclrtMemAttr = 14;
pub type aclrtMemAttr = ::core::ffi::c_uint;
pub const ACL_DEVICE: aclrtRunMode = 0;
pub const ACL_HOST: aclrtRunMode = 1;
pub type aclrtRunMode = ::core::ffi::c_uint;
pub const ACL_STREAM_STATUS_COMPLETE: aclrtStreamStatus = 0;
pub const ACL_STREAM_STATUS_NOT_READY: aclrtStreamStatus = 1;
pub type aclrtStreamStatus = ::core::ffi::c_uint;
pub const ACL_EVENT_RECORDED_STATUS_NOT_READY: aclrtEventRecordedStatus = 0;
pub const ACL_EVENT_RECORDED_STATUS_COMPLETE: aclrtEventRecordedStatus = 1;
pub type aclrtEventRecordedStatus = ::core::ffi::c_uint;
pub const ACL_EVENT_WAIT_STATUS_COMPLETE: aclrtEventWaitStatus = 0;
pub const ACL_EVENT_WAIT_STATUS_NOT_READY: aclrtEventWaitStatus = 1;
pub type aclrtEventWaitStatus = ::core::ffi::c_uint;
pub const ACL_OPT_DETERMINISTIC: aclSysParamOpt = 0;
pub const ACL_OPT_ENABLE_DEBUG_KERNEL: aclSysParamOpt = 1;
pub const ACL_OPT_STRONG_CONSISTENCY: aclSysParamOpt = 2;
pub type aclSysParamOpt = ::core::ffi::c_uint;
pub const ACL_MODEL_RI_CAPTURE_MODE_GLOBAL: aclmdlRICaptureMode = 0;
pub const ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL: aclmdlRICaptureMode = 1;
pub const ACL_MODEL_RI_CAPTURE_MODE_RELAXED: aclmdlRICaptureMode = 2;
pub type aclmdlRICaptureMode = ::core::ffi::c_uint;
pub const ACL_MODEL_RI_CAPTURE_STATUS_NONE: aclmdlRICaptureStatus = 0;
pub const ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE: aclmdlRICaptureStatus = 1;
pub const ACL_MODEL_RI_CAPTURE_STATUS_INVALIDATED: aclmdlRICaptureStatus = 2;
pub type aclmdlRICaptureStatus = ::core::ffi::c_uint;
pub const ACL_MEM_LOCATION_TYPE_HOST: aclrtMemLocationType = 0;
pub const ACL_MEM_LOCATION_TYPE_DEVICE: aclrtMemLocationType = 1;
pub const ACL_MEM_LOCATION_TYPE_UNREGISTERED: aclrtMemLocationType = 2;
pub const ACL_MEM_LOCATION_TYPE_MANAGED: aclrtMemLocationType = 3;
pub const ACL_MEM_LOCATION_TYPE_HOST_NUMA: aclrtMemLocationType = 4;
pub type aclrtMemLocationType = ::core::ffi::c_uint;
pub const ACL_MEM_ALLOCATION_TYPE_PINNED: aclrtMemAllocationType = 0;
pub type aclrtMemAllocationType = ::core::ffi::c_uint;
pub const ACL_MEM_HANDLE_TYPE_NONE: aclrtMemHandleType = 0;
pub const ACL_MEM_HANDLE_TYPE_POSIX: aclrtMemHandleType = 2;
pub type aclrtMemHandleType = ::core::ffi::c_uint;
pub const ACL_RT_MEM_ALLOC_GRANULARITY_MINIMUM: aclrtMemGranularityOptions = 0;
pub const ACL_RT_MEM_ALLOC_GRANULARITY_RECOMMENDED: aclrtMemGranularityOptions = 1;
pub type aclrtMemGranularityOptions = ::core::ffi::c_uint;
pub const ACL_DEV_ATTR_AICPU_CORE_NUM: aclrtDevAttr = 1;
pub const ACL_DEV_ATTR_AICORE_CORE_NUM: aclrtDevAttr = 101;
pub const ACL_DEV_ATTR_CUBE_CORE_NUM: aclrtDevAttr = 102;
pub const ACL_DEV_ATTR_VECTOR_CORE_NUM: aclrtDevAttr = 201;
pub const ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE: aclrtDevAttr = 301;
pub const ACL_DEV_ATTR_L2_CACHE_SIZE: aclrtDevAttr = 302;
pub const ACL_DEV_ATTR_IS_VIRTUAL: aclrtDevAttr = 501;
pub const ACL_DEV_ATTR_NPU_ARCH: aclrtDevAttr = 601;
pub type aclrtDevAttr = ::core::ffi::c_uint;
pub type aclrtLastErrLevel = ::core::ffi::c_int;
pub type aclDeviceInfo = ::core::ffi::c_int;
pub type aclrtHostRegisterType = ::core::ffi::c_int;
pub type aclrtCallbackBlockType = ::core::ffi::c_int;
#[repr(C)]
#[derive(Copy, Clone)]
pub struct aclrtMemLocation {
    pub id: u32,
    pub type_: aclrtMemLocationType,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of aclrtMemLocation"][::core::mem::size_of::<aclrtMemLocation>() - 8usize];
    ["Alignment of aclrtMemLocation"][::core::mem::align_of::<aclrtMemLocation>() - 4usize];
    ["Offset of field: aclrtMemLocation::id"][::core::mem::offset_of!(aclrtMemLocation, id) - 0usize];
    ["Offset of field: aclrtMemLocation::type_"][::core::mem::offset_of!(aclrtMemLocation, type_) - 4usize];
};
#[repr(C)]
#[derive(Copy, Clone)]
pub struct aclrtPhysicalMemProp {
    pub handleType: aclrtMemHandleType,
    pub allocationType: aclrtMemAllocationType,
    pub memAttr: aclrtMemAttr,
    pub location: aclrtMemLocation,
    pub reserve: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of aclrtPhysicalMemProp"][::core::mem::size_of::<aclrtPhysicalMemProp>() - 32usize];
    ["Alignment of aclrtPhysicalMemProp"][::core::mem::align_of::<aclrtPhysicalMemProp>() - 8usize];
    ["Offset of field: aclrtPhysicalMemProp::handleType"]
        [::core::mem::offset_of!(aclrtPhysicalMemProp, handleType) - 0usize];
    ["Offset of field: aclrtPhysicalMemProp::allocationType"]
        [::core::mem::offset_of!(aclrtPhysicalMemProp, allocationType) - 4usize];
    ["Offset of field: aclrtPhysicalMemProp::memAttr"]
        [::core::mem::offset_of!(aclrtPhysicalMemProp, memAttr) - 8usize];
    ["Offset of field: aclrtPhysicalMemProp::location"]
        [::core::mem::offset_of!(aclrtPhysicalMemProp, location) - 12usize];
    ["Offset of field: aclrtPhysicalMemProp::reserve"]
        [::core::mem::offset_of!(aclrtPhysicalMemProp, reserve) - 24usize];
};
#[repr(C)]
#[derive(Copy, Clone)]
pub struct aclrtPtrAttributes {
    pub location: aclrtMemLocation,
    pub pageSize: u32,
    pub rsv: [u32; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of aclrtPtrAttributes"][::core::mem::size_of::<aclrtPtrAttributes>() - 28usize];
    ["Alignment of aclrtPtrAttributes"][::core::mem::align_of::<aclrtPtrAttributes>() - 4usize];
    ["Offset of field: aclrtPtrAttributes::location"]
        [::core::mem::offset_of!(aclrtPtrAttributes, location) - 0usize];
    ["Offset of field: aclrtPtrAttributes::pageSize"]
        [::core::mem::offset_of!(aclrtPtrAttributes, pageSize) - 8usize];
    ["Offset of field: aclrtPtrAttributes::rsv"][::core::mem::offset_of!(aclrtPtrAttributes, rsv) - 12usize];
};
#[repr(C)]
#[derive(Debug)]
pub struct aclrtMallocAttribute {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Copy, Clone)]
pub struct aclrtMallocConfig {
    pub attrs: *mut aclrtMallocAttribute,
    pub numAttrs: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of aclrtMallocConfig"][::core::mem::size_of::<aclrtMallocConfig>() - 16usize];
    ["Alignment of aclrtMallocConfig"][::core::mem::align_of::<aclrtMallocConfig>() - 8usize];
    ["Offset of field: aclrtMallocConfig::attrs"][::core::mem::offset_of!(aclrtMallocConfig, attrs) - 0usize];
    ["Offset of field: aclrtMallocConfig::numAttrs"]
        [::core::mem::offset_of!(aclrtMallocConfig, numAttrs) - 8usize];
};
pub type aclnnStatus = i32;
#[repr(C)]
#[derive(Debug)]
pub struct aclTensor {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclScalar {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclIntArray {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclFloatArray {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclBoolArray {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclTensorList {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclScalarList {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug)]
pub struct aclOpExecutor {
    _unused: [u8; 0],
}
pub type HcclComm = *mut ::core::ffi::c_void;
pub const HCCL_SUCCESS: HcclResult = 0;
pub const HCCL_E_PARA: HcclResult = 1;
pub const HCCL_E_PTR: HcclResult = 2;
pub const HCCL_E_MEMORY: HcclResult = 3;
pub const HCCL_E_INTERNAL: HcclResult = 4;
pub const HCCL_E_NOT_SUPPORT: HcclResult = 5;
pub const HCCL_E_NOT_FOUND: HcclResult = 6;
pub const HCCL_E_UNAVAIL: HcclResult = 7;
pub const HCCL_E_SYSCALL: HcclResult = 8;
pub const HCCL_E_TIMEOUT: HcclResult = 9;
pub const HCCL_E_TCP_CONNECT: HcclResult = 11;
pub const HCCL_E_ROCE_CONNECT: HcclResult = 12;
pub const HCCL_E_RUNTIME: HcclResult = 15;
pub const HCCL_E_DRV: HcclResult = 16;
pub const HCCL_E_NETWORK: HcclResult = 19;
pub const HCCL_E_AGAIN: HcclResult = 20;
pub const HCCL_E_REMOTE: HcclResult = 21;
pub const HCCL_E_SUSPENDING: HcclResult = 22;
pub const HCCL_E_OPRETRY_FAIL: HcclResult = 23;
pub const HCCL_E_OOM: HcclResult = 24;
pub type HcclResult = ::core::ffi::c_uint;
pub const HCCL_REDUCE_SUM: HcclReduceOp = 0;
pub const HCCL_REDUCE_PROD: HcclReduceOp = 1;
pub const HCCL_REDUCE_MAX: HcclReduceOp = 2;
pub const HCCL_REDUCE_MIN: HcclReduceOp = 3;
pub type HcclReduceOp = ::core::ffi::c_uint;
pub const HCCL_DATA_TYPE_INT8: HcclDataType = 0;
pub const HCCL_DATA_TYPE_INT16: HcclDataType = 1;
pub const HCCL_DATA_TYPE_INT32: HcclDataType = 2;
pub const HCCL_DATA_TYPE_FP16: HcclDataType = 3;
pub const HCCL_DATA_TYPE_FP32: HcclDataType = 4;
pub const HCCL_DATA_TYPE_INT64: HcclDataType = 5;
pub const HCCL_DATA_TYPE_UINT64: HcclDataType = 6;
pub const HCCL_DATA_TYPE_UINT8: HcclDataType = 7;
pub const HCCL_DATA_TYPE_UINT16: HcclDataType = 8;
pub const HCCL_DATA_TYPE_UINT32: HcclDataType = 9;
pub const HCCL_DATA_TYPE_FP64: HcclDataType = 10;
pub const HCCL_DATA_TYPE_BFP16: HcclDataType = 11;
pub const HCCL_DATA_TYPE_INT128: HcclDataType = 12;
pub const HCCL_DATA_TYPE_HIF8: HcclDataType = 14;
pub const HCCL_DATA_TYPE_FP8E4M3: HcclDataType = 15;
pub const HCCL_DATA_TYPE_FP8E5M2: HcclDataType = 16;
pub const HCCL_DATA_TYPE_FP8E8M0: HcclDataType = 17;
pub type HcclDataType = ::core::ffi::c_uint;
pub const HCCL_SEND: HcclSendRecvType = 0;
pub const HCCL_RECV: HcclSendRecvType = 1;
pub type HcclSendRecvType = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Copy, Clone)]
pub struct HcclRootInfo {
    pub internal: [::core::ffi::c_char; 4108usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HcclRootInfo"][::core::mem::size_of::<HcclRootInfo>() - 4108usize];
    ["Alignment of HcclRootInfo"][::core::mem::align_of::<HcclRootInfo>() - 1usize];
    ["Offset of field: HcclRootInfo::internal"][::core::mem::offset_of!(HcclRootInfo, internal) - 0usize];
};
#[repr(C)]
#[derive(Debug)]
pub struct HcclCommConfig {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Copy, Clone)]
pub struct HcclSendRecvItem {
    pub sendRecvType: HcclSendRecvType,
    pub buf: *mut ::core::ffi::c_void,
    pub count: u64,
    pub dataType: HcclDataType,
    pub remoteRank: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HcclSendRecvItem"][::core::mem::size_of::<HcclSendRecvItem>() - 32usize];
    ["Alignment of HcclSendRecvItem"][::core::mem::align_of::<HcclSendRecvItem>() - 8usize];
    ["Offset of field: HcclSendRecvItem::sendRecvType"]
        [::core::mem::offset_of!(HcclSendRecvItem, sendRecvType) - 0usize];
    ["Offset of field: HcclSendRecvItem::buf"][::core::mem::offset_of!(HcclSendRecvItem, buf) - 8usize];
    ["Offset of field: HcclSendRecvItem::count"][::core::mem::offset_of!(HcclSendRecvItem, count) - 16usize];
    ["Offset of field: HcclSendRecvItem::dataType"]
        [::core::mem::offset_of!(HcclSendRecvItem, dataType) - 24usize];
    ["Offset of field: HcclSendRecvItem::remoteRank"]
        [::core::mem::offset_of!(HcclSendRecvItem, remoteRank) - 28usize];
};
