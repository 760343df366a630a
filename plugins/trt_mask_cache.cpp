// IPluginV3 adapters of the mask cache for TensorRT 11 and TensorRT-RTX.
//
// Built only with -DTENSORRT_INCLUDE_DIR. Nothing of TensorRT is linked: the plugin registry calls
// getCreators, and everything else goes through virtual functions.
#include <NvInferRuntime.h>

#include <cstdint>

#include "launchers.h"
#include "numeric.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;

constexpr char kNamespace[] = "liveedit";
constexpr char kVersion[] = "1";
constexpr int32_t kFailure = -1;

bool is_real(DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

int dtype_of(DataType type) {
    switch (type) {
        case DataType::kHALF: return liveedit::kFloat16;
        case DataType::kBF16: return liveedit::kBFloat16;
        default: return liveedit::kFloat32;
    }
}

bool is_rows(const Dims& dims, int64_t width) {  // [1, any, width]
    return dims.nbDims == 3 && dims.d[0] == 1 && dims.d[2] == width;
}

bool is_row(const Dims& dims, int64_t width) {  // [1, 1, width]
    return is_rows(dims, width) && dims.d[1] == 1;
}

// What the two plugins share: no fields, no workspace, no tactics, linear layout, one real type.
template <class Derived>
class MaskCachePlugin : public nvinfer1::IPluginV3,
                        public nvinfer1::IPluginV3OneCore,
                        public nvinfer1::IPluginV3OneBuildV2,
                        public nvinfer1::IPluginV3OneRuntime {
public:
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE:
                return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD:
                return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME:
                return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override { return new Derived(); }

    char const* getPluginName() const noexcept override { return Derived::kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return Derived::kOutputs; }

    int32_t getOutputDataTypes(DataType* outputs, int32_t num_outputs, DataType const* inputs,
                               int32_t num_inputs) const noexcept override {
        if (num_inputs != Derived::kInputs || num_outputs != Derived::kOutputs) return kFailure;
        for (int32_t i = 0; i < num_outputs; ++i) outputs[i] = inputs[0];
        return 0;
    }

    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors,
                                   int32_t num_inputs, int32_t num_outputs) noexcept override {
        if (num_inputs != Derived::kInputs || num_outputs != Derived::kOutputs) return false;
        const PluginTensorDesc& tensor = tensors[position].desc;
        if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
        if (position == Derived::kIndexInput) return tensor.type == DataType::kINT32;
        if (Derived::is_modulation(position)) return tensor.type == DataType::kFLOAT;
        return is_real(tensor.type) && tensor.type == tensors[0].desc.type;
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t,
                            DynamicPluginTensorDesc const*, int32_t) noexcept override {
        return 0;
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
        return clone();
    }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &no_fields_; }

private:
    PluginFieldCollection no_fields_{0, nullptr};
};

// Inputs x, scale, shift, keep_index; output y.
class MaskCacheGather final : public MaskCachePlugin<MaskCacheGather> {
public:
    static constexpr char kName[] = "MaskCacheGather";
    static constexpr int32_t kInputs = 4;
    static constexpr int32_t kOutputs = 1;
    static constexpr int32_t kIndexInput = 3;
    static bool is_modulation(int32_t position) { return position == 1 || position == 2; }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t num_inputs, DimsExprs const*, int32_t,
                            DimsExprs* outputs, int32_t num_outputs,
                            IExprBuilder&) noexcept override {
        if (num_inputs != kInputs || num_outputs != kOutputs) return kFailure;
        if (inputs[0].nbDims != 3 || inputs[3].nbDims != 1) return kFailure;
        outputs[0] = inputs[0];
        outputs[0].d[1] = inputs[3].d[0];
        return 0;
    }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t num_inputs,
                          PluginTensorDesc const* out, int32_t num_outputs) noexcept override {
        if (num_inputs != kInputs || num_outputs != kOutputs) return kFailure;
        const Dims& x = in[0].dims;
        const bool right = x.nbDims == 3 && is_rows(x, x.d[2]) && is_row(in[1].dims, x.d[2]) &&
                           is_row(in[2].dims, x.d[2]) && in[3].dims.nbDims == 1 &&
                           is_rows(out[0].dims, x.d[2]) && out[0].dims.d[1] == in[3].dims.d[0];
        return right ? 0 : kFailure;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return liveedit_mask_cache_gather(
            inputs[0], static_cast<float const*>(inputs[1]), static_cast<float const*>(inputs[2]),
            static_cast<int32_t const*>(inputs[3]), outputs[0], in[0].dims.d[1], in[3].dims.d[0],
            in[0].dims.d[2], dtype_of(in[0].type), stream);
    }
};

// Inputs x, update, store, gate, token_row; outputs y, store_out (in the buffer of store).
class MaskCacheScatter final : public MaskCachePlugin<MaskCacheScatter> {
public:
    static constexpr char kName[] = "MaskCacheScatter";
    static constexpr int32_t kInputs = 5;
    static constexpr int32_t kOutputs = 2;
    static constexpr int32_t kIndexInput = 4;
    static bool is_modulation(int32_t position) { return position == 3; }

    int32_t getAliasedInput(int32_t output) noexcept override { return output == 1 ? 2 : -1; }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t num_inputs, DimsExprs const*, int32_t,
                            DimsExprs* outputs, int32_t num_outputs,
                            IExprBuilder&) noexcept override {
        if (num_inputs != kInputs || num_outputs != kOutputs) return kFailure;
        outputs[0] = inputs[0];
        outputs[1] = inputs[2];
        return 0;
    }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t num_inputs, PluginTensorDesc const*,
                          int32_t num_outputs) noexcept override {
        if (num_inputs != kInputs || num_outputs != kOutputs) return kFailure;
        const Dims& x = in[0].dims;
        const bool right = x.nbDims == 3 && is_rows(x, x.d[2]) && is_rows(in[1].dims, x.d[2]) &&
                           is_rows(in[2].dims, x.d[2]) && in[2].dims.d[1] == x.d[1] &&
                           is_row(in[3].dims, x.d[2]) && in[4].dims.nbDims == 1 &&
                           in[4].dims.d[0] == x.d[1];
        return right ? 0 : kFailure;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return liveedit_mask_cache_scatter(
            inputs[0], inputs[1], inputs[2], static_cast<float const*>(inputs[3]),
            static_cast<int32_t const*>(inputs[4]), outputs[0], outputs[1], in[0].dims.d[1],
            in[1].dims.d[1], in[0].dims.d[2], dtype_of(in[0].type), stream);
    }
};

template <class Plugin>
class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    nvinfer1::IPluginV3* createPlugin(char const*, PluginFieldCollection const*,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return new Plugin();
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &no_fields_; }
    char const* getPluginName() const noexcept override { return Plugin::kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    PluginFieldCollection no_fields_{0, nullptr};
};

}  // namespace

extern "C" LIVEEDIT_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static Creator<MaskCacheGather> gather;
    static Creator<MaskCacheScatter> scatter;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&gather, &scatter};
    count = 2;
    return creators;
}

// The plugins log nothing: a wrong shape or a failed launch is a return value.
extern "C" LIVEEDIT_API void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
