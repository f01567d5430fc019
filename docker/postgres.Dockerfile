# PostgreSQL 17 with pgvector, for the stack (docker/stack.yaml). Built by `nox -s build-image -- postgres`.
# From Debian's packages, on the same base as the API. No syntax line: it must build without pulling a frontend.

ARG PYTHON_IMAGE=python:3.13-slim-trixie

# postgres: the server, with scripts to start, back up and restore it. It writes to the volume only.
FROM ${PYTHON_IMAGE} AS postgres
ARG POSTGRES_MAJOR=17
# The user is added before the package, which would choose another number; files on the volume must have the same owner
# on every machine. Debian's own cluster is disabled; `serve` initializes one on the volume. libLLVM (120 MB) is removed, because
# jit is off. The socket folder has mode 1777: a tmpfs mounted there gets its mode but not its owner.
RUN --mount=type=bind,source=docker/apt-install,target=/mnt/apt-install \
    --mount=type=cache,id=apt-cache-postgres,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,id=apt-lists-postgres,target=/var/lib/apt,sharing=locked \
    --mount=type=secret,id=ca \
    echo 'postgres:x:999:999::/var/lib/postgresql:/usr/sbin/nologin' >>/etc/passwd \
 && echo 'postgres:x:999:' >>/etc/group \
 && install -d -m 0755 /etc/postgresql-common \
 && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
 && /mnt/apt-install "postgresql-${POSTGRES_MAJOR}" "postgresql-${POSTGRES_MAJOR}-pgvector" \
 && rm -rf /usr/lib/*/libLLVM*.so* "/usr/lib/postgresql/${POSTGRES_MAJOR}/lib/bitcode" \
        "/usr/lib/postgresql/${POSTGRES_MAJOR}/lib/llvmjit.so" /etc/ssl/private/* /var/lib/postgresql \
 && ln -s "/usr/lib/postgresql/${POSTGRES_MAJOR}" /usr/lib/postgresql/current \
 && install -d -o 999 -g 999 -m 0700 /var/lib/postgresql /var/lib/postgresql/data \
 && install -d -o 999 -g 999 -m 1777 /run/postgresql \
 && find / -xdev -perm /6000 -type f -exec chmod a-s {} + \
 && /mnt/apt-install --reset-times
COPY --link docker/postgres/*.conf /etc/truthgraph/
COPY --link --chmod=0755 docker/postgres/serve docker/postgres/backup docker/postgres/restore docker/postgres/rows \
    /usr/local/bin/
ENV PATH=/usr/lib/postgresql/current/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PGHOST=/run/postgresql \
    TZ=UTC
VOLUME ["/var/lib/postgresql/data"]
EXPOSE 5432
# SIGINT is PostgreSQL's fast shutdown: it ends the sessions. SIGTERM would wait until the API disconnects.
STOPSIGNAL SIGINT
HEALTHCHECK --interval=2s --timeout=5s --retries=15 --start-period=120s \
    CMD ["pg_isready", "--quiet"]
CMD ["serve"]
USER 999:999
