// A tiny NVTX tool: prints domains, pushes and pops to the file named by NVTX_LOG.
// Loaded by NVTX itself through NVTX_INJECTION64_PATH.
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <stdlib.h>

typedef int (*ExportTable)(uint32_t, void*);
static FILE* log_file;
static char domain_name[256];
static int depth;

struct nvtxStringRegistration_st { char text[512]; };

static nvtxDomainHandle_t create_domain(const char* name) {
  snprintf(domain_name, sizeof domain_name, "%s", name);
  fprintf(log_file, "domain\t%s\n", name);
  return (nvtxDomainHandle_t)domain_name;
}

static nvtxStringHandle_t register_string(nvtxDomainHandle_t domain, const char* text) {
  (void)domain;
  nvtxStringHandle_t handle = malloc(sizeof *handle);
  snprintf(handle->text, sizeof handle->text, "%s", text);
  return handle;
}

static int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  const char* text = event->messageType == NVTX_MESSAGE_TYPE_REGISTERED
                         ? event->message.registered->text : event->message.ascii;
  fprintf(log_file, "push\t%d\t%s\t%s\n", depth, domain ? (const char*)domain : "", text);
  fflush(log_file);
  return depth++;
}

static int pop(nvtxDomainHandle_t domain) {
  (void)domain;
  fprintf(log_file, "pop\t%d\n", --depth);
  fflush(log_file);
  return depth;
}

NVTX_DYNAMIC_EXPORT int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  log_file = fopen(getenv("NVTX_LOG"), "w");
  const NvtxExportTableCallbacks* callbacks = get_table(NVTX_ETID_CALLBACKS);
  NvtxFunctionTable table;
  unsigned int size = 0;
  if (!log_file || !callbacks ||
      !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size))
    return 0;
  *table[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)create_domain;
  *table[NVTX_CBID_CORE2_DomainRegisterStringA] = (NvtxFunctionPointer)register_string;
  *table[NVTX_CBID_CORE2_DomainRangePushEx] = (NvtxFunctionPointer)push;
  *table[NVTX_CBID_CORE2_DomainRangePop] = (NvtxFunctionPointer)pop;
  return 1;
}
