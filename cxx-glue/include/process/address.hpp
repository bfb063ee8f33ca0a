// The address of a libprocess: what `process::address()` returns.

#ifndef __PROCESS_ADDRESS_HPP__
#define __PROCESS_ADDRESS_HPP__

#include <arpa/inet.h>
#include <stdint.h>
#include <sys/socket.h>

#include <cstring>

#include <stout/ip.hpp>

namespace process {
namespace network {
namespace inet {

class Address
{
public:
  // The real one aborts on another family; here the caller sees AF_UNSPEC.
  operator sockaddr_storage() const
  {
    sockaddr_storage storage;
    memset(&storage, 0, sizeof(storage));
    if (ip.family() == AF_INET) {
      sockaddr_in in = {};
      in.sin_family = AF_INET;
      in.sin_addr = ip.in();
      in.sin_port = htons(port);
      memcpy(&storage, &in, sizeof(in));
    } else if (ip.family() == AF_INET6) {
      sockaddr_in6 in6 = {};
      in6.sin6_family = AF_INET6;
      in6.sin6_addr = ip.in6();
      in6.sin6_port = htons(port);
      memcpy(&storage, &in6, sizeof(in6));
    }
    return storage;
  }

  net::IP ip;
  uint16_t port;
};

} // namespace inet {
} // namespace network {
} // namespace process {

#endif // __PROCESS_ADDRESS_HPP__
