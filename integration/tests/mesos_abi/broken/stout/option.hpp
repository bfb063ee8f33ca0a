// The official Option with its two states the other way round: a layout that is
// not the host's.

#ifndef __STOUT_OPTION_HPP__
#define __STOUT_OPTION_HPP__

#include <new>

#include <stout/none.hpp>

template <typename T>
class Option
{
public:
  Option(const T& _t) : state(SOME), t(_t) {}

  Option(const None&) : state(NONE) {}

  Option(const Option<T>& that) : state(that.state)
  {
    if (that.isSome()) {
      new (&t) T(that.t);
    }
  }

  Option<T>& operator=(const Option<T>&) = delete;

  ~Option()
  {
    if (isSome()) {
      t.~T();
    }
  }

  bool isSome() const { return state == SOME; }
  bool isNone() const { return state == NONE; }

  const T& get() const { return t; }

private:
  enum State
  {
    NONE,
    SOME,
  };

  State state;

  union {
    T t;
  };
};

#endif // __STOUT_OPTION_HPP__
