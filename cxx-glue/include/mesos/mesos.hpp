// The messages of mesos.proto that an isolator meets.
//
// Only constructors and destructors are declared; their bodies are libmesos's.
// The sizes are *upper bounds* for objects that the glue itself owns, where too
// much room does no harm: the real sizeof is libmesos's business, and the
// self-check refuses a host on which one would not fit. Whoever walks over an
// array of messages must use the size that the host reports, never sizeof.

#ifndef __MESOS_HPP__
#define __MESOS_HPP__

#include <google/protobuf/message.h>

// A message of at most `BYTES` bytes.
#define MESOS_DECLARE_MESSAGE(Name, BYTES)                                     \
  class Name : public google::protobuf::Message                                \
  {                                                                            \
  public:                                                                      \
    Name();                                                                    \
    Name(const Name& from);                                                    \
    ~Name() override;                                                          \
                                                                               \
  private:                                                                     \
    char storage[(BYTES) - sizeof(google::protobuf::Message)];                 \
  }

namespace mesos {

MESOS_DECLARE_MESSAGE(ContainerID, 256);
MESOS_DECLARE_MESSAGE(ContainerStatus, 512);
MESOS_DECLARE_MESSAGE(Parameters, 256);
MESOS_DECLARE_MESSAGE(ResourceStatistics, 2048);

class Value_Scalar;

class Value
{
public:
  typedef Value_Scalar Scalar;
};

} // namespace mesos {

#endif // __MESOS_HPP__
