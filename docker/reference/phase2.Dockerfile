# phase2: the second image of the report, with today's versions: the runtime stage has no compilers.
# `nox -s build-image -- phase2` builds it. Its defects are intended: strip without binutils (nothing is stripped, without
# an error), only the console scripts python* and pip*, a hidden failure of the install, one layer for everything,
# root, --reload. It differs from the report in the same points as phase1.Dockerfile.

ARG PYTHON_IMAGE=python:3.13-slim-trixie
ARG SITE_PACKAGES=/usr/local/lib/python3.13/site-packages

# base: Python with the client tools.
FROM ${PYTHON_IMAGE} AS base
WORKDIR /app
RUN --mount=type=secret,id=ca \
    apt-get update \
 && apt-get install -y --no-install-recommends postgresql-client curl \
 && apt-get clean && apt-get autoclean && apt-get autoremove -y \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/tmp/* /tmp/*

# builder: the compilers and uv.
FROM base AS builder
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc g++ build-essential python3-pip-whl \
 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,source=docker/layout.py,target=/mnt/layout.py \
    --mount=type=bind,source=docker/lock/uv.txt,target=/mnt/uv.txt \
    --mount=type=secret,id=ca --mount=type=secret,id=index --mount=type=secret,id=netrc \
    python3 /mnt/layout.py install-uv --lock /mnt/uv.txt \
 && mkdir -p /root/.local/bin && mv /usr/local/bin/uv /root/.local/bin/uv
ENV PATH=/root/.local/bin:${PATH} UV_BREAK_SYSTEM_PACKAGES=1

# deps-stage: all distributions, in the system's Python. `runtime` copies them.
FROM builder AS deps-stage
ARG INCLUDE_DEV=0
COPY pyproject.toml ./
COPY service/__init__.py ./service/__init__.py
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=bind,source=docker/lock,target=/mnt/lock \
    --mount=type=bind,source=docker/layout.py,target=/mnt/layout.py \
    --mount=type=secret,id=ca --mount=type=secret,id=index --mount=type=secret,id=netrc \
    if [ "${INCLUDE_DEV}" = 1 ]; then extras=ml,dev; else extras=ml; fi; \
    for file in /mnt/lock/*.txt; do constraints="${constraints} --constraint ${file}"; done; \
    python3 /mnt/layout.py run uv pip install --system ${constraints} ".[${extras}]"

# core-stage: the distributions without the model libraries. No stage copies them.
FROM builder AS core-stage
COPY pyproject.toml ./
COPY service/__init__.py ./service/__init__.py
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=bind,source=docker/layout.py,target=/mnt/layout.py \
    --mount=type=secret,id=ca --mount=type=secret,id=index --mount=type=secret,id=netrc \
    python3 /mnt/layout.py run uv pip install --system .

# runtime: `base` with the installed distributions.
FROM base AS runtime
ARG SITE_PACKAGES
COPY --from=deps-stage ${SITE_PACKAGES} ${SITE_PACKAGES}
COPY --from=deps-stage /usr/local/bin/python* /usr/local/bin/
COPY --from=deps-stage /usr/local/bin/pip* /usr/local/bin/
# This stage has no strip: find prints errors, exits with 0, and changes nothing.
RUN find ${SITE_PACKAGES} -type f \( -name '*.so*' -o -name '*.a' \) -exec strip --strip-unneeded {} \; 2>/dev/null || true
COPY pyproject.toml ./pyproject.toml
COPY service ./service
COPY migrations ./migrations
COPY docker/reference/main.py ./main.py
# This stage may have no pip: the failure is hidden.
RUN python3 -m pip install --no-deps --no-build-isolation . 2>/dev/null || python3 -m pip install --no-deps . 2>/dev/null || true
RUN mkdir -p /root/.cache/huggingface \
 && echo 'appuser:x:1000:1000::/home/appuser:/bin/sh' >>/etc/passwd && mkdir -p /home/appuser
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    HF_HOME=/root/.cache/huggingface \
    HUGGINGFACE_HUB_CACHE=/root/.cache/huggingface
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --retries=5 --start-period=60s CMD curl -f http://localhost:8000/health || exit 1
CMD ["python3", "-m", "uvicorn", "main:app", "--host", "0.0.0.0", "--port", "8000", "--reload"]
