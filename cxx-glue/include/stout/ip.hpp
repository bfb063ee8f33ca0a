// stout's IP address: a family, then the address in network order.

#ifndef __STOUT_IP_HPP__
#define __STOUT_IP_HPP__

#include <netinet/in.h>

namespace net {

// Only libmesos makes one; it clears the storage first.
class IP
{
public:
  int family() const { return family_; }

  // The real ones return a Try, to refuse the wrong family. Only Address
  // calls them.
  struct in_addr in() const { return storage_.in_; }
  struct in6_addr in6() const { return storage_.in6_; }

private:
  union Storage
  {
    struct in_addr in_;
    struct in6_addr in6_;
  };

  int family_;
  Storage storage_;
};

} // namespace net {

#endif // __STOUT_IP_HPP__
