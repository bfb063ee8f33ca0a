// A real Mesos master, agent or container helper, run from the package index's libmesos.
//
//   mesos-node master                     a master, flags from MESOS_* variables
//   mesos-node agent master@IP:PORT       an agent that registers with that master
//   mesos-containerizer launch ...        the helper that the agent execs for each container
//   mesos-containerizer network-cni-setup ...
//                                         the helper that gives a task with an image its /etc/hosts
//
// libmesos has no main() of mesos-master and mesos-agent, but it has
// mesos::internal::local::launch(), which mesos-local and the scheduler
// driver's "local" mode use: it starts one master and MESOS_NUM_SLAVES agents
// in this process, reads the same MESOS_* flags and loads the same modules
// JSON as the real programs. A master node is that with no agent. An agent
// node is that with one agent, whose master detector is pointed elsewhere: the
// in-process master learns that it does not lead, and stays idle.
//
// `mesos-containerizer` is a symbolic link to this program in the agent's
// launcher directory. libmesos.so and stubs/ lie beside the program itself; the
// program is linked with an rpath to stubs/ (DT_RPATH, which also counts for
// what libmesos asks for), so that no LD_LIBRARY_PATH leaks into containers.
//
// Nothing here includes a Mesos header: every call goes through a mangled name
// that libmesos exports. Seen working with 1.8.1, 1.9.0, 1.10.0 and 1.11.0.
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <typeinfo>

namespace {

void* libmesos = nullptr;
std::string master_pid;  // "master@127.0.0.1:5050"

[[noreturn]] void die(const std::string& why) {
  fprintf(stderr, "mesos-node: %s\n", why.c_str());
  exit(2);
}

template <typename T>
T symbol(const char* name) {
  void* address = dlsym(libmesos, name);
  if (address == nullptr) die(std::string("libmesos lacks ") + name);
  return reinterpret_cast<T>(address);
}

// stout's Option<std::string>: a state (0 SOME, 1 NONE), then the value.
struct OptionString {
  int state = 1;
  alignas(8) char value[sizeof(std::string)] = {};
  OptionString() = default;
  explicit OptionString(const std::string& s) : state(0) { new (value) std::string(s); }
};

// Loads flags from PREFIX* variables and argv into an object whose FlagsBase is `base`.
void load_flags(void* base, const char* prefix, int argc, const char* const* argv) {
  alignas(16) static char warnings[1024];  // Try<flags::Warnings>, returned by address
  OptionString option{std::string(prefix)};
  symbol<void (*)(void*, void*, const void*, int, const char* const*, bool, bool)>(
      "_ZN5flags9FlagsBase4loadERK6OptionINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEEiPKPKcbb")(
      warnings, base, &option, argc, argv, /*unknowns=*/true, /*duplicates=*/false);
}

// StandaloneMasterDetector::appoint(UPID), which the hook below calls.
void appoint_remote_master(void* detector, const void*) {
  alignas(16) static char upid[512];
  symbol<void (*)(void*, const std::string&)>(
      "_ZN7process4UPIDC1ERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE")(upid, master_pid);
  symbol<void (*)(void*, const void*)>(
      "_ZN5mesos6master8detector24StandaloneMasterDetector7appointERKN7process4UPIDE")(detector, upid);
}

// local::launch() appoints its own master by calling appoint(Option<MasterInfo>)
// directly (the library is linked -Bsymbolic-functions, so the symbol cannot be
// interposed): overwrite that function's entry with a jump to ours.
void redirect_detector() {
  auto* entry = symbol<unsigned char*>(
      "_ZN5mesos6master8detector24StandaloneMasterDetector7appointERK6OptionINS_10MasterInfoEE");
  auto page = reinterpret_cast<unsigned long>(entry) & ~4095UL;
  void* target = reinterpret_cast<void*>(&appoint_remote_master);
  if (mprotect(reinterpret_cast<void*>(page), 8192, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) die("mprotect");
  entry[0] = 0x48, entry[1] = 0xb8;  // movabs rax, target
  memcpy(entry + 2, &target, sizeof target);
  entry[10] = 0xff, entry[11] = 0xe0;  // jmp rax
  mprotect(reinterpret_cast<void*>(page), 8192, PROT_READ | PROT_EXEC);
}

void run_node(const char* delegate) {
  // local::Flags is an object of a few hundred bytes with a virtual base.
  alignas(16) static char flags[16384];
  symbol<void (*)(void*)>("_ZN5mesos8internal5local5FlagsC1Ev")(flags);
  void* base = flags;
  auto* local_type = symbol<const std::type_info*>("_ZTIN5mesos8internal5local5FlagsE");
  auto* base_type = symbol<const abi::__class_type_info*>("_ZTIN5flags9FlagsBaseE");
  if (!local_type->__do_upcast(base_type, &base)) die("local::Flags is no FlagsBase");
  const char* argv[] = {"local"};
  load_flags(base, "MESOS_", 1, argv);

  OptionString name{std::string(delegate)}, none;
  symbol<bool (*)(const void*, const void*, const void*)>(
      "_ZN7process10initializeERK6OptionINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEES9_S9_")(
      &name, &none, &none);

  alignas(16) static char pid[1024];  // PID<Master>, returned by address
  symbol<void (*)(void*, const void*, void*)>(
      "_ZN5mesos8internal5local6launchERKNS1_5FlagsEPNS_9allocator9AllocatorE")(pid, flags, nullptr);
  for (;;) pause();
}

// Removes the mounts over <rootfs>/proc/sysrq-trigger from the launch information (JSON).
//
// Mesos 1.11 makes that file read-only in every container with a root file system of its own, and the
// launch fails where a kernel built without sysrq has no such file: there is nothing to protect then.
// The object {"flags":..,"source":"..","target":"<rootfs>/proc/sysrq-trigger"} is cut out as text. That
// is safe: paths of a work directory hold no brace, and the same words inside a user's string carry
// escaped quotes.
std::string without_sysrq_mount(std::string json) {
  for (const std::string path : {"/proc/sysrq-trigger\"", "\\/proc\\/sysrq-trigger\""}) {
    const std::string key = "\"target\":";
    for (size_t at = 0; (at = json.find(path, at)) != std::string::npos;) {
      const size_t quote = json.rfind('"', at);
      if (quote == std::string::npos || quote < key.size() ||
          json.compare(quote - key.size(), key.size(), key) != 0) {
        at += path.size();
        continue;
      }
      size_t begin = json.rfind('{', quote), end = json.find('}', at);
      if (begin == std::string::npos || end == std::string::npos) die("MESOS_CONTAINERIZER_LAUNCH_INFO is no JSON");
      ++end;
      if (end < json.size() && json[end] == ',') {
        ++end;
      } else if (begin > 0 && json[begin - 1] == ',') {
        --begin;
      }
      json.erase(begin, end - begin);
      at = begin;
    }
  }
  return json;
}

// NetworkCniIsolatorSetup, whose constructor libmesos exports.
int run_network_setup(int argc, char** argv) {
  alignas(16) static char setup[16384];
  symbol<void (*)(void*)>("_ZN5mesos8internal5slave23NetworkCniIsolatorSetupC1Ev")(setup);
  void* flags = symbol<void* (*)(void*)>("_ZN5mesos8internal5slave23NetworkCniIsolatorSetup8getFlagsEv")(setup);
  load_flags(flags, "MESOS_CONTAINERIZER_", argc, argv);
  return symbol<int (*)(void*)>("_ZN5mesos8internal5slave23NetworkCniIsolatorSetup7executeEv")(setup);
}

// MesosContainerizerLaunch: { vptr, std::string name, FlagsBase, Flags flags }.
int run_launch(int argc, char** argv) {
  constexpr const char* launch_info = "MESOS_CONTAINERIZER_LAUNCH_INFO";
  const char* info = getenv(launch_info);
  if (info != nullptr && access("/proc/sysrq-trigger", F_OK) != 0)
    setenv(launch_info, without_sysrq_mount(info).c_str(), 1);
  alignas(16) static char launch[16384];
  *reinterpret_cast<char**>(launch) =
      symbol<char*>("_ZTVN5mesos8internal5slave24MesosContainerizerLaunchE") + 2 * sizeof(void*);
  new (launch + sizeof(void*)) std::string("launch");
  auto get_flags = symbol<void* (*)(void*)>("_ZN5mesos8internal5slave24MesosContainerizerLaunch8getFlagsEv");
  // getFlags() returns this + constant; less the virtual base's offset in Flags it gives where Flags begins.
  long in_flags = *symbol<long*>("_ZTVN5mesos8internal5slave24MesosContainerizerLaunch5FlagsE");
  char* flags = static_cast<char*>(get_flags(launch)) - in_flags;
  symbol<void (*)(void*)>("_ZN5mesos8internal5slave24MesosContainerizerLaunch5FlagsC1Ev")(flags);
  load_flags(get_flags(launch), "MESOS_CONTAINERIZER_", argc, argv);
  return symbol<int (*)(void*)>("_ZN5mesos8internal5slave24MesosContainerizerLaunch7executeEv")(launch);
}

int run_containerizer(int argc, char** argv) {
  const std::string command = argc < 1 ? "" : argv[0];
  if (command == "launch") return run_launch(argc, argv);
  if (command == "network-cni-setup") return run_network_setup(argc, argv);
  die("the containerizer helper does not know '" + command + "'");
}

}  // namespace

int main(int argc, char** argv) {
  char self[PATH_MAX] = {};
  if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) die("cannot read /proc/self/exe");
  const std::string directory(self, static_cast<size_t>(strrchr(self, '/') - self));
  if (dlopen((directory + "/stubs/libpython-stub.so").c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) die(dlerror());
  libmesos = dlopen((directory + "/libmesos.so").c_str(), RTLD_LAZY | RTLD_GLOBAL);
  if (libmesos == nullptr) die(dlerror());

  const char* slash = strrchr(argv[0], '/');
  const std::string program = slash == nullptr ? argv[0] : slash + 1;
  const std::string role = argc < 2 ? "" : argv[1];
  if (program == "mesos-containerizer") {
    return run_containerizer(argc - 1, argv + 1);
  } else if (role == "master") {
    run_node("master");
  } else if (role == "agent" && argc == 3) {
    master_pid = argv[2];
    redirect_detector();
    run_node("slave(1)");
  }
  die("usage: mesos-node master | mesos-node agent master@IP:PORT | mesos-containerizer launch ...");
}
