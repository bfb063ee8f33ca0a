// The manifest of a module of kind "Anonymous".

#ifndef __MESOS_MODULE_ANONYMOUS_HPP__
#define __MESOS_MODULE_ANONYMOUS_HPP__

#include <mesos/mesos.hpp>
#include <mesos/module.hpp>

namespace mesos {
namespace modules {

// A module that Mesos creates and then never calls.
class Anonymous
{
public:
  Anonymous() {}

  virtual ~Anonymous() {}
};


template <>
struct Module<Anonymous> : ModuleBase
{
  Module(
      const char* _moduleApiVersion,
      const char* _mesosVersion,
      const char* _authorName,
      const char* _authorEmail,
      const char* _description,
      bool (*_compatible)(),
      Anonymous* (*_create)(const Parameters& parameters))
    : ModuleBase(
          _moduleApiVersion,
          _mesosVersion,
          "Anonymous",
          _authorName,
          _authorEmail,
          _description,
          _compatible),
      create(_create) {}

  Anonymous* (*create)(const Parameters& parameters);
};

} // namespace modules {
} // namespace mesos {

#endif // __MESOS_MODULE_ANONYMOUS_HPP__
