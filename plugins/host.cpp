// The kernels on the CPU: the same bodies, dispatch and grid, looped over. For tests without a GPU.
#include "dispatch.h"
#include "launchers.h"

namespace {

struct HostRun {
    template <class Body>
    int operator()(liveedit::Geometry g, Body body) const {
        for (int64_t block = 0; block < g.blocks; ++block) {
            for (int thread = 0; thread < g.threads; ++thread) body(block, thread, g.threads);
        }
        return 0;
    }
};

constexpr liveedit::Dispatch<HostRun> host{};

}  // namespace

#define LIVEEDIT_ENTRY(name, call, ...) \
    extern "C" int liveedit_host_##name(__VA_ARGS__) { return host.call; }
#include "entry_points.h"
