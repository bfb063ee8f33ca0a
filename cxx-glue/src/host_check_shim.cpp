#include "host_check_shim.hpp"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include <mesos/mesos.hpp>

#include <mesos/slave/containerizer.hpp>

#include <process/future.hpp>

#include <stout/hashmap.hpp>
#include <stout/none.hpp>
#include <stout/nothing.hpp>
#include <stout/option.hpp>

#include "convert_shim.hpp"

using std::optional;
using std::size_t;
using std::string;
using std::to_string;

namespace extvol {

namespace {

// mesos::modules::ModuleManager::kindToVersion: for each kind of module the
// lowest version to admit, which Mesos sets to its own version for all kinds,
// before it opens any library. Its header (src/module/manager.hpp) is not
// installed. Weak: where it is missing the library still loads, and says so in
// a sentence of its own.
extern "C" hashmap<string, string> hostKindToVersion
  __asm__("_ZN5mesos7modules13ModuleManager13kindToVersionB5cxx11E")
  __attribute__((weak));


string differs(
    const string& what,
    const string& expected,
    const string& found)
{
  return what + ": expected " + expected + ", found " + found;
}


// ContainerLaunchInfo { environment { variables { name: "A", value: "B" } } }
const string LAUNCH_INFO("\x12\x08\x0a\x06\x0a\x01\x41\x12\x01\x42", 10);

// ContainerLimitation { message: "A" }
const string LIMITATION("\x12\x01\x41", 3);

// ContainerStatus { executor_pid: 1 }
const string STATUS("\x18\x01", 2);


// An upper bound for any message's size: what a wrong guess may overrun while
// it is being measured.
constexpr size_t MEASURING_ROOM = 16384;


struct Measured
{
  size_t size = 0;
  const void* table = nullptr;
};


template <typename T>
Measured measure()
{
  alignas(alignof(std::max_align_t)) char room[MEASURING_ROOM];
  T* message = new (room) T();
  Measured measured;
  measured.size = message->SpaceUsedLong();
  memcpy(&measured.table, room, sizeof(measured.table));
  message->~T();
  return measured;
}


template <typename T>
optional<string> refuseRoom(const string& name, size_t room)
{
  const size_t size = measure<T>().size;
  if (size == 0 || size > room) {
    return differs(
        "size of " + name,
        "1 to " + to_string(room) + " bytes",
        to_string(size));
  }
  return std::nullopt;
}


// The parts of a future, looked at from outside.
template <typename T>
class FutureBytes
{
public:
  explicit FutureBytes(const process::Future<T>& future)
  {
    memcpy(words, static_cast<const void*>(&future), sizeof(words));
  }

  template <typename U>
  U at(size_t offset) const { return read<U>(words[0], offset); }

  int owners(size_t offset) const { return read<int>(words[1], offset); }

  bool isNull() const { return words[0] == nullptr || words[1] == nullptr; }

private:
  static_assert(
      sizeof(process::Future<T>) == 2 * sizeof(void*),
      "a Future is a shared_ptr and nothing else");

  template <typename U>
  static U read(const char* base, size_t offset)
  {
    U value;
    memcpy(&value, base + offset, sizeof(value));
    return value;
  }

  // What a shared_ptr is: the object, then the control block.
  const char* words[2];
};


template <typename T>
string describe(const process::Future<T>& future, const HostExpectations& e)
{
  const FutureBytes<T> bytes(future);
  return "state " + to_string(bytes.template at<int>(e.futureState)) +
    ", discard " + to_string(bytes.template at<uint8_t>(e.futureDiscard)) +
    ", associated " + to_string(bytes.template at<uint8_t>(e.futureAssociated)) +
    ", abandoned " + to_string(bytes.template at<uint8_t>(e.futureAbandoned));
}


string describe(int state, bool abandoned)
{
  return "state " + to_string(state) + ", discard 0, associated 0, abandoned " +
    to_string(abandoned);
}


// Makes, copies, completes and reads one future of the type.
template <typename T>
optional<string> refuseFuture(
    const string& type,
    const T& value,
    string (*serialize)(const T&),
    const HostExpectations& e)
{
  const string name = "Future<" + type + ">";

  const process::Future<T> empty;
  if (FutureBytes<T>(empty).isNull()) {
    return differs("default-made " + name, "a shared_ptr to its state", "null");
  }
  if (describe(empty, e) != describe(e.pending, true)) {
    return differs(
        "default-made " + name, describe(e.pending, true), describe(empty, e));
  }

  process::Promise<T> promise;
  const process::Future<T> future = promise.future();
  if (describe(future, e) != describe(e.pending, false)) {
    return differs(
        "promised " + name, describe(e.pending, false), describe(future, e));
  }

  // The promise's own and `future`.
  const int owners = FutureBytes<T>(future).owners(e.sharedPtrUseCount);
  if (owners != 2) {
    return differs(
        "owners in the shared_ptr of " + name, "2", to_string(owners));
  }

  if (!promise.set(value) ||
      describe(future, e) != describe(e.ready, false)) {
    return differs(
        name + " after set()", describe(e.ready, false), describe(future, e));
  }
  if (promise.set(value)) {
    return differs(name + " set twice", "a refusal", "success");
  }
  if (serialize(future.get()) != serialize(value)) {
    return differs(name + " after set()", "the value set", "another value");
  }

  process::Promise<T> failing;
  const process::Future<T> failure = failing.future();
  if (!failing.fail("") || describe(failure, e) != describe(e.failed, false)) {
    return differs(
        name + " after fail()", describe(e.failed, false), describe(failure, e));
  }

  return std::nullopt;
}


template <typename T>
string serializeMessage(const T& message)
{
  return message.SerializeAsString();
}


string serializeNothing(const Nothing&) { return ""; }


string serializeLaunchInfo(
    const Option<mesos::slave::ContainerLaunchInfo>& launchInfo)
{
  if (launchInfo.isNone()) {
    return "none";
  }
  // Where the host's Option is laid out otherwise, there is no message here, and
  // its functions must not be called.
  const void* table;
  memcpy(&table, static_cast<const void*>(&launchInfo.get()), sizeof(table));
  if (table != measure<mesos::slave::ContainerLaunchInfo>().table) {
    return "not a message";
  }
  return launchInfo.get().SerializeAsString();
}


template <typename T>
optional<string> refuseParsing(
    const string& name,
    const string& bytes,
    T* message)
{
  if (!message->ParseFromString(bytes) ||
      message->SerializeAsString() != bytes) {
    return differs(
        name + " parsed from bytes and serialized", "the same bytes", "others");
  }
  return std::nullopt;
}


optional<string> refuseFutures(const HostExpectations& e)
{
  if (auto refusal =
        refuseFuture<Nothing>("Nothing", Nothing(), serializeNothing, e)) {
    return refusal;
  }

  mesos::slave::ContainerLaunchInfo launchInfo;
  if (auto refusal =
        refuseParsing("ContainerLaunchInfo", LAUNCH_INFO, &launchInfo)) {
    return refusal;
  }
  for (const Option<mesos::slave::ContainerLaunchInfo>& option :
       {Option<mesos::slave::ContainerLaunchInfo>(launchInfo),
        Option<mesos::slave::ContainerLaunchInfo>(None())}) {
    if (auto refusal = refuseFuture<Option<mesos::slave::ContainerLaunchInfo>>(
            "Option<ContainerLaunchInfo>", option, serializeLaunchInfo, e)) {
      return refusal;
    }
  }

  mesos::slave::ContainerLimitation limitation;
  if (auto refusal =
        refuseParsing("ContainerLimitation", LIMITATION, &limitation)) {
    return refusal;
  }
  if (auto refusal = refuseFuture<mesos::slave::ContainerLimitation>(
          "ContainerLimitation",
          limitation,
          serializeMessage<mesos::slave::ContainerLimitation>,
          e)) {
    return refusal;
  }

  mesos::ContainerStatus status;
  if (auto refusal = refuseParsing("ContainerStatus", STATUS, &status)) {
    return refusal;
  }
  if (auto refusal = refuseFuture<mesos::ContainerStatus>(
          "ContainerStatus",
          status,
          serializeMessage<mesos::ContainerStatus>,
          e)) {
    return refusal;
  }

  mesos::ResourceStatistics statistics;
  if (auto refusal = refuseParsing(
          "ResourceStatistics", timestampedStatistics(1.5), &statistics)) {
    return refusal;
  }
  return refuseFuture<mesos::ResourceStatistics>(
      "ResourceStatistics",
      statistics,
      serializeMessage<mesos::ResourceStatistics>,
      e);
}


// "mesos::internal::slave::MesosIsolator::prepare(...)" -> "prepare"; "?" for
// anything that is not a function of that class.
string isolatorFunction(const void* address)
{
  static const string CLASS = "mesos::internal::slave::MesosIsolator::";

  Dl_info info;
  if (dladdr(address, &info) == 0 || info.dli_sname == nullptr) {
    return "?";
  }

  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status),
      std::free);
  if (status != 0 || demangled == nullptr) {
    return "?";
  }

  const string name(demangled.get());
  if (name.compare(0, CLASS.size(), CLASS) != 0) {
    return "?";
  }
  return name.substr(CLASS.size(), name.find('(') - CLASS.size());
}


// Mesos's own isolators sit behind one class that overrides every function of
// the interface: its table tells the order.
optional<string> refuseIsolatorTable(const HostExpectations& e)
{
  static const char* TABLE = "_ZTVN5mesos8internal5slave13MesosIsolatorE";

  const void* const* table =
    static_cast<const void* const*>(dlsym(RTLD_DEFAULT, TABLE));
  if (table == nullptr) {
    return differs(
        "virtual functions of Isolator",
        "the table of MesosIsolator to compare with",
        "none exported");
  }

  // The offset to the top, the type, two destructors.
  table += 4;
  for (size_t i = 0; i < e.isolatorFunctions.size(); i++) {
    const string found = isolatorFunction(table[i]);
    if (found != e.isolatorFunctions[i]) {
      return differs(
          "virtual function " + to_string(i) + " of Isolator",
          e.isolatorFunctions[i],
          found);
    }
  }
  return std::nullopt;
}


optional<string> refuseVersion(const HostExpectations& e)
{
  const string version = hostMesosVersion();
  string tested;
  for (const string& candidate : e.testedVersions) {
    if (candidate == version) {
      return std::nullopt;
    }
    tested += (tested.empty() ? "" : ", ") + candidate;
  }
  return differs(
      "Mesos version", "one of " + tested, version.empty() ? "none" : version);
}

} // namespace {


string hostMesosVersion()
{
  if (&hostKindToVersion == nullptr) {
    return "";
  }

  // Only walked over, by links: a search would depend on Mesos's hash. That
  // the count agrees, and both our kinds are found, also shows that the
  // unordered containers of both sides are laid out alike.
  size_t kinds = 0;
  string isolator;
  string anonymous;
  for (const auto& kindAndVersion : hostKindToVersion) {
    kinds++;
    if (kindAndVersion.first == "Isolator") {
      isolator = kindAndVersion.second;
    } else if (kindAndVersion.first == "Anonymous") {
      anonymous = kindAndVersion.second;
    }
  }
  return kinds == hostKindToVersion.size() && isolator == anonymous
    ? isolator
    : "";
}


const char* claimedMesosVersion(const HostExpectations& expected)
{
  const string version = hostMesosVersion();
  for (const string& candidate : expected.testedVersions) {
    if (candidate == version) {
      return candidate.c_str();
    }
  }
  return expected.mesosVersion.c_str();
}


optional<string> refuseMaster(const HostExpectations& expected)
{
  return refuseVersion(expected);
}


optional<string> refuseAgent(const HostExpectations& e, HostLayout* layout)
{
  if (auto refusal = refuseVersion(e)) {
    return refusal;
  }
  if (auto refusal = refuseIsolatorTable(e)) {
    return refusal;
  }

  // Sizes come before anything that makes such a message on the stack.
  if (auto refusal = refuseRoom<mesos::slave::ContainerLaunchInfo>(
          "ContainerLaunchInfo", e.launchInfoRoom)) {
    return refusal;
  }
  if (auto refusal = refuseRoom<mesos::slave::ContainerLimitation>(
          "ContainerLimitation", e.limitationRoom)) {
    return refusal;
  }
  if (auto refusal = refuseRoom<mesos::ResourceStatistics>(
          "ResourceStatistics", e.statisticsRoom)) {
    return refusal;
  }
  if (auto refusal =
        refuseRoom<mesos::ContainerStatus>("ContainerStatus", e.statusRoom)) {
    return refusal;
  }

  const Measured state = measure<mesos::slave::ContainerState>();
  const Measured id = measure<mesos::ContainerID>();
  if (state.size == 0 || state.size % alignof(void*) != 0) {
    return differs(
        "size of ContainerState",
        "a multiple of " + to_string(alignof(void*)),
        to_string(state.size));
  }
  layout->containerStateSize = state.size;
  layout->containerStateTable = state.table;
  layout->containerIdTable = id.table;

  return refuseFutures(e);
}

} // namespace extvol {
