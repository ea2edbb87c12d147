/* A program that knows the vendor's interface and nothing of the simulator: y = 2x + x by a copy and one operator. With
   an argument, x begins one element behind its allocation's beginning, against the rule for addresses. */
#include "aclnn.h"
#include "aclnnop.h"

#include <dlfcn.h>
#include <stdio.h>

#define CHECK(call)                                                                           \
    do {                                                                                      \
        int code = (call);                                                                    \
        if (code != 0) {                                                                      \
            const char *why = aclGetRecentErrMsg();                                           \
            fprintf(stderr, "%s: %d: %s\n", #call, code, why ? why : "no message");           \
            return 1;                                                                         \
        }                                                                                     \
    } while (0)

int main(int count, char **arguments) {
    enum { COUNT = 8, BYTES = COUNT * sizeof(float) };
    (void)arguments;
    float host[COUNT], result[COUNT];
    for (int i = 0; i < COUNT; i++) {
        host[i] = (float)i;
    }
    CHECK(aclInit(NULL));
    CHECK(aclrtSetDevice(0));
    printf("soc %s\n", aclrtGetSocName());

    aclrtStream stream;
    void *memory, *x, *y;
    CHECK(aclrtCreateStream(&stream));
    CHECK(aclrtMalloc(&memory, BYTES + sizeof(float), ACL_MEM_MALLOC_HUGE_FIRST));
    x = (char *)memory + (count > 1 ? sizeof(float) : 0);
    CHECK(aclrtMalloc(&y, BYTES, ACL_MEM_MALLOC_HUGE_FIRST));
    CHECK(aclrtMemcpy(x, BYTES, host, BYTES, ACL_MEMCPY_HOST_TO_DEVICE));

    int64_t shape[1] = {COUNT};
    float two = 2.0f;
    aclTensor *in = aclCreateTensor(shape, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, 1, x);
    aclTensor *out = aclCreateTensor(shape, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, 1, y);
    aclScalar *alpha = aclCreateScalar(&two, ACL_FLOAT);
    uint64_t size = 0;
    aclOpExecutor *executor;
    CHECK(aclnnAddGetWorkspaceSize(in, in, alpha, out, &size, &executor));
    CHECK(aclnnAdd(NULL, size, executor, stream));
    CHECK(aclrtSynchronizeStream(stream));
    CHECK(aclrtMemcpy(result, BYTES, y, BYTES, ACL_MEMCPY_DEVICE_TO_HOST));
    for (int i = 0; i < COUNT; i++) {
        if (result[i] != 3.0f * host[i]) {
            fprintf(stderr, "element %d is %g\n", i, result[i]);
            return 1;
        }
    }

    /* Opened by another name, it is the same driver: its devices are those of this program. */
    void *other = dlopen("libhccl.so", RTLD_NOW);
    int (*get_device)(int *) = other ? (int (*)(int *))dlsym(other, "aclrtGetDevice") : NULL;
    int device = -1;
    if (get_device == NULL || get_device(&device) != 0 || device != 0) {
        fprintf(stderr, "libhccl.so is another driver, or none\n");
        return 1;
    }

    /* The second tensor is left behind, for the report at the end. */
    CHECK(aclDestroyTensor(in));
    CHECK(aclDestroyScalar(alpha));
    CHECK(aclrtFree(memory));
    CHECK(aclrtFree(y));
    CHECK(aclrtDestroyStream(stream));
    CHECK(aclFinalize());
    printf("done\n");
    return 0;
}
