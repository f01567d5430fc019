# The reverse proxy of the stack (docker/stack.yaml): Debian's nginx. Built by `nox -s build-image -- proxy`.
# On the same base as the API. No syntax line: it must build without pulling a frontend.

ARG PYTHON_IMAGE=python:3.13-slim-trixie

# proxy: nginx with our configuration; it writes to /tmp only.
FROM ${PYTHON_IMAGE} AS proxy
RUN --mount=type=bind,source=docker/apt-install,target=/mnt/apt-install \
    --mount=type=cache,id=apt-cache-proxy,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,id=apt-lists-proxy,target=/var/lib/apt,sharing=locked \
    --mount=type=secret,id=ca \
    echo 'proxy:x:998:998::/nonexistent:/usr/sbin/nologin' >>/etc/passwd \
 && echo 'proxy:x:998:' >>/etc/group \
 && /mnt/apt-install nginx curl \
 && rm -rf /etc/nginx/sites-* /etc/nginx/modules-* /var/www /var/log/nginx/* \
 && find / -xdev -perm /6000 -type f -exec chmod a-s {} + \
 && /mnt/apt-install --reset-times
COPY --link docker/proxy/nginx.conf /etc/truthgraph/nginx.conf
COPY --link --chmod=0755 docker/proxy/serve /usr/local/bin/serve
EXPOSE 8080
# SIGQUIT is nginx's graceful shutdown: it completes open requests. SIGTERM would abort them.
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=2s --timeout=3s --retries=5 --start-period=15s \
    CMD ["curl", "--fail", "--silent", "--show-error", "--output", "/dev/null", "http://127.0.0.1:8081/"]
CMD ["serve"]
USER 998:998
