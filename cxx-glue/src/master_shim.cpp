#include "master_shim.hpp"

#include <netdb.h>
#include <sys/socket.h>

#include <exception>
#include <iostream>
#include <string>
#include <utility>

#include <process/address.hpp>
#include <process/process.hpp>

#include "convert_shim.hpp"
#include "cxx-glue/src/bridge.rs.h"

using std::string;

namespace extvol {

namespace {

class VolumeLeaseMaster : public mesos::modules::Anonymous
{
public:
  explicit VolumeLeaseMaster(rust::Box<MasterHandle> _rust)
    : rust(std::move(_rust)) {}

private:
  const rust::Box<MasterHandle> rust;
};


string ownAddress()
{
  const sockaddr_storage storage = process::address();
  socklen_t length;
  switch (storage.ss_family) {
    case AF_INET: length = sizeof(sockaddr_in); break;
    case AF_INET6: length = sizeof(sockaddr_in6); break;
    default: return ""; // Not laid out as we think.
  }

  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (getnameinfo(
          reinterpret_cast<const sockaddr*>(&storage),
          length,
          host,
          sizeof(host),
          port,
          sizeof(port),
          NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "";
  }
  if (string(port) == "0") {
    return "";
  }
  return storage.ss_family == AF_INET6 ? "[" + string(host) + "]:" + port
                                       : string(host) + ":" + port;
}

} // namespace {


mesos::modules::Anonymous* createMasterModule(
    const mesos::Parameters& parameters) noexcept
{
  try {
    const string bytes = parameters.SerializeAsString();
    return new VolumeLeaseMaster(start_master_module(asSlice(bytes)));
  } catch (const std::exception& e) {
    std::cerr << "extvol: the master's module does not start: " << e.what()
              << std::endl;
  } catch (...) {
    std::cerr << "extvol: the master's module does not start" << std::endl;
  }
  return nullptr;
}


rust::String own_address() noexcept
{
  try {
    return ownAddress();
  } catch (...) {
    return rust::String();
  }
}

} // namespace extvol {
