//! RecordIO framing of Mesos's streaming HTTP responses.
