# Two images, FROM scratch, of prebuilt static programs: `make image` builds both for each architecture
# into build/*.tar, with nothing from the network. The context is the directory build.

FROM scratch AS webhook
ARG TARGETARCH
COPY --chmod=0755 linux-${TARGETARCH}/meshvirt-webhook /meshvirt-webhook
USER 65532:65532
ENTRYPOINT ["/meshvirt-webhook"]

# The user of each container comes from the pod: root with NET_ADMIN for the rules, 1500 for the relay (root
# with NET_RAW in mode tproxy).
FROM scratch AS dataplane
ARG TARGETARCH
COPY --chmod=0755 linux-${TARGETARCH}/meshvirt-rules linux-${TARGETARCH}/meshvirt-proxy /
USER 65532:65532
