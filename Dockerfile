# syntax=docker/dockerfile:1
# One image for migrations, worker, beat, Flower and watcher; docker-compose.yml says which of them a container is.

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE beat_schedule.py ./
COPY workers ./workers
COPY producers ./producers
COPY sql ./sql
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.11-slim
# Telemetry files of the host must be readable for this uid: give them a group of it, or build with another uid.
ARG UID=10001
RUN useradd --system --uid "$UID" --create-home --home-dir /var/lib/headrace headrace
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links=/wheels headrace
# hdbpp-postprocessing's own file is read where its container had it, if it is mounted there.
ENV HEADRACE_DATA_DIR=/var/lib/headrace \
    HEADRACE_POSTPROCESSING__LEGACY_CONFIG=/etc/hdb/hdbpp_postprocessing.conf \
    PYTHONUNBUFFERED=1
USER headrace
WORKDIR /var/lib/headrace
CMD ["headrace", "--help"]
