# Controller, worker and command line in one image. `make image` makes the context: the static binary, and Mozilla's
# roots, since the TLS library builds no client without any.
FROM scratch
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY charon /charon
USER 65532:65532
ENTRYPOINT ["/charon"]
