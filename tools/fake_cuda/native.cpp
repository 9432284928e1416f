// What a CUDA build of PyTorch registers, as far as tensors without storage need it: a device guard, hooks, and the
// choice of the attention kernel. Pinned memory is ordinary memory that is known to be pinned.

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <map>
#include <mutex>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

const Device kDevice(DeviceType::CUDA, 0);

struct FakeGuard final : public c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, kDevice); }
  Stream getDefaultStream(Device) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream getNewStream(Device, int) const override { return Stream(Stream::DEFAULT, kDevice); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, kDevice); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

// Allocates from the CPU's allocator and remembers what it has allocated.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr memory = c10::GetCPUAllocator()->allocate(bytes);
    auto* owned = new c10::DataPtr(std::move(memory));
    std::lock_guard<std::mutex> lock(mutex_);
    ends_[owned->get()] = static_cast<char*>(owned->get()) + bytes;
    return {owned->get(), owned, &PinnedAllocator::release, c10::Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool owns(const void* pointer) const {
    std::lock_guard<std::mutex> lock(mutex_);
    auto after = ends_.upper_bound(const_cast<void*>(pointer));
    return after != ends_.begin() && pointer < std::prev(after)->second;
  }
  static PinnedAllocator& instance() {
    static PinnedAllocator allocator;
    return allocator;
  }

 private:
  static void release(void* context) {
    auto* owned = static_cast<c10::DataPtr*>(context);
    {
      std::lock_guard<std::mutex> lock(instance().mutex_);
      instance().ends_.erase(owned->get());
    }
    delete owned;
  }
  mutable std::mutex mutex_;
  std::map<void*, char*> ends_;
};

// Flash kernels take half precision, memory-efficient ones fp32, as in a CUDA build without masks and dropout.
int64_t choose_attention(
    const at::Tensor& query, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool,
    std::optional<double>, bool) {
  const auto dtype = query.scalar_type();
  if (dtype == at::kHalf || dtype == at::kBFloat16) return static_cast<int64_t>(sdp::SDPBackend::flash_attention);
  if (dtype == at::kFloat) return static_cast<int64_t>(sdp::SDPBackend::efficient_attention);
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

c10::impl::DeviceGuardImplRegistrar register_guard(DeviceType::CUDA, new FakeGuard());

}  // namespace

namespace at {

struct CUDAHooks : public CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  bool isPinnedPtr(const void* pointer) const override { return PinnedAllocator::instance().owns(pointer); }
  Allocator* getPinnedMemoryAllocator() const override { return &PinnedAllocator::instance(); }
  void deviceSynchronize(DeviceIndex) const override {}
};

REGISTER_CUDA_HOOKS(CUDAHooks);

namespace native {
REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &choose_attention)
}

}  // namespace at
