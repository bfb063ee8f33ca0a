// protobuf's base classes, as far as the glue needs them: messages cross the
// bridge as bytes, so serializing and parsing is all that is ever done.

#ifndef GOOGLE_PROTOBUF_MESSAGE_H__
#define GOOGLE_PROTOBUF_MESSAGE_H__

#include <stddef.h>

#include <string>

namespace google {
namespace protobuf {

class MessageLite
{
public:
  virtual ~MessageLite();

  bool ParseFromString(const std::string& data);
  std::string SerializeAsString() const;
};


class Message : public MessageLite
{
public:
  // For a message without content: the sizeof that libmesos was built with.
  size_t SpaceUsedLong() const;
};


template <typename Key, typename T>
class Map;

} // namespace protobuf {
} // namespace google {

#endif // GOOGLE_PROTOBUF_MESSAGE_H__
