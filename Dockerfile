# Rubato as an image: one static binary, no shell, no root.
#
#   docker build -t rubato .
#
# The first stage needs what a fresh machine needs: Rust and a C compiler. Both architectures build natively (`--platform`).

FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev gcc g++ make cmake perl linux-headers
WORKDIR /src
COPY . .
# The workspace's tests are not part of an image; the lock file is.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin rubato && cp target/release/rubato /rubato

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /rubato /rubato
COPY LICENSE /LICENSE
# As distroless' `nonroot` is called, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /var/tempo
# HTTP, gRPC, OTLP, gossip, dataflow.
EXPOSE 3200 9095 4317 4318 7946 7947
ENTRYPOINT ["/rubato"]
