# The image of Perennial: one binary; no shell, no root.
#
#   docker build -t perennial --build-arg BUILD_COMMIT="$(git rev-parse --short=12 HEAD)" .
#
# Nothing here needs BuildKit, so old engines build it too.

# Both are Debian 12: the binary is linked with the C library of the one and runs with that of the
# other. The second has no versions: its tag moves with Debian's security updates alone.
ARG BUILD_IMAGE=rust:1.95.0-bookworm
ARG RUN_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /build

# The allocator has the size of a memory page built in, by default that of the machine which builds
# it. Those of 64-bit ARM differ: the largest works on all of them.
RUN if [ "$(uname -m)" = aarch64 ]; then \
        printf '[env]\nJEMALLOC_SYS_WITH_LG_PAGE = "16"\n' >> "$CARGO_HOME/config.toml"; \
    fi

# The dependencies, built for an empty program: made again only when one of these files changes.
COPY Cargo.toml Cargo.lock build.rs ./
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --release --bin perennial

# The program itself. Cargo compares times, and a file in the context may be older than the empty
# program was.
COPY . .
ARG BUILD_COMMIT=unknown
RUN touch src/lib.rs src/main.rs && cargo build --locked --release --bin perennial

# What the image adds to its base: the second folder belongs to the user it runs as, and so does a
# volume that is first mounted there. Without line numbers the binary is a fifth as large; backtraces
# still have the names of functions.
RUN mkdir -p /image/usr/local/bin /image/usr/share/doc/perennial /writable/data \
    && strip --strip-debug -o /image/usr/local/bin/perennial target/release/perennial \
    && cp LICENSE-MIT LICENSE-APACHE /image/usr/share/doc/perennial/ \
    && chmod 700 /writable/data


FROM ${RUN_IMAGE}
COPY --from=build /image /
COPY --from=build --chown=65532:65532 /writable /

# The store and every relative path.
WORKDIR /data
USER 65532:65532

# The configuration is mounted here; there need be none where the environment has it all. Inside a
# container loopback reaches nobody: who is let in is decided where the port is published.
ENV PERENNIAL_CONFIG=/etc/perennial/perennial.toml \
    PERENNIAL_SERVER__LISTEN=0.0.0.0:9464
EXPOSE 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/perennial", "health"]
ENTRYPOINT ["/usr/local/bin/perennial"]
CMD ["serve"]

ARG BUILD_COMMIT=unknown
LABEL org.opencontainers.image.title="Perennial" \
      org.opencontainers.image.description="Keeps every OAuth 2.0 token alive, shows how each one stands, and says when only a person can help" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${BUILD_COMMIT}" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
