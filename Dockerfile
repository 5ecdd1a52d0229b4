# Two images, FROM scratch, of prebuilt static programs: `make build` first.
#   buildah build --target webhook   -t meshvirt/webhook .
#   buildah build --target dataplane -t meshvirt/dataplane .

FROM scratch AS webhook
COPY build/meshvirt-webhook /meshvirt-webhook
USER 65532:65532
ENTRYPOINT ["/meshvirt-webhook"]

# The user of each container comes from the pod: root with NET_ADMIN for the rules, 1500 for the relay.
FROM scratch AS dataplane
COPY build/meshvirt-rules /meshvirt-rules
COPY build/meshvirt-proxy /meshvirt-proxy
USER 65532:65532
