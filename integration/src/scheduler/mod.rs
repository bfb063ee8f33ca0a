//! A small v1 HTTP scheduler that keeps named tasks running.
