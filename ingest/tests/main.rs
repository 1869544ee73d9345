//! The receivers from outside: real sockets, real clients and hand-made requests, against a log in memory.

mod grpc;
mod harness;
mod hostile;
mod http;
mod jaeger;
mod limits;
mod pusher;
mod replication;
mod zipkin;
