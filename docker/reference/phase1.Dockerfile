# phase1: the first image of the report, with today's versions, as the baseline of all measurements.
# `nox -s build-image -- phase1` builds it. Its defects are intended: compilers in `base` and so in every stage, uv and all
# of /usr/local copied, root, --reload. It differs from the report in three points: uv comes from the package index by its
# hash (not from a script on the web), versions are those of docker/lock, and uv may install into Debian's Python.

ARG PYTHON_IMAGE=python:3.13-slim-trixie

# base: Python with the client tools and the compilers.
FROM ${PYTHON_IMAGE} AS base
WORKDIR /app
RUN --mount=type=secret,id=ca \
    apt-get update \
 && apt-get install -y --no-install-recommends postgresql-client curl gcc g++ python3-pip-whl \
 && apt-get clean && apt-get autoclean && apt-get autoremove -y \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/tmp/* /tmp/*
RUN --mount=type=bind,source=docker/layout.py,target=/mnt/layout.py \
    --mount=type=bind,source=docker/lock/uv.txt,target=/mnt/uv.txt \
    --mount=type=secret,id=ca --mount=type=secret,id=index --mount=type=secret,id=netrc \
    python3 /mnt/layout.py install-uv --lock /mnt/uv.txt \
 && mkdir -p /root/.local/bin && mv /usr/local/bin/uv /root/.local/bin/uv
ENV PATH=/root/.local/bin:${PATH} UV_BREAK_SYSTEM_PACKAGES=1

# deps-stage: all distributions, in the system's Python. `runtime` copies them.
FROM base AS deps-stage
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/* && apt-get clean
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

# runtime: `base` with its compilers, and all of /usr/local and /root/.local.
FROM base AS runtime
COPY --from=deps-stage /usr/local /usr/local
COPY --from=deps-stage /root/.local /root/.local
COPY pyproject.toml ./pyproject.toml
COPY service ./service
COPY migrations ./migrations
COPY docker/reference/main.py ./main.py
RUN --mount=type=cache,target=/root/.cache \
    --mount=type=bind,source=docker/layout.py,target=/mnt/layout.py \
    --mount=type=secret,id=ca --mount=type=secret,id=index --mount=type=secret,id=netrc \
    python3 /mnt/layout.py run uv pip install --system --no-deps .
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
