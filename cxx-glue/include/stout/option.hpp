// stout's Option, as far as the glue needs it: made, copied, handed over.
//
// Its layout is part of the module ABI (an isolator's `prepare` answers with
// an Option): a state, SOME being 0, then the value. The self-check of
// `host_check_shim.cpp` sends one through a future of Mesos's and reads it back.

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
    SOME,
    NONE,
  };

  State state;

  union {
    T t;
  };
};

#endif // __STOUT_OPTION_HPP__
