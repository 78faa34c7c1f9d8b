FROM python:3.13-slim AS build
ENV PIP_CONSTRAINT=constraints.txt \
    PIP_BUILD_CONSTRAINT=constraints.txt \
    PIP_CACHE_DIR=/var/cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip pip install --quiet --root-user-action=ignore --upgrade pip
COPY pyproject.toml README.md LICENSE ./
COPY tracker tracker
RUN --mount=type=cache,target=/var/cache/pip \
    pip wheel --quiet --wheel-dir wheels . \
    && python -m venv --without-pip /opt/tracker \
    && pip --python /opt/tracker/bin/python install --quiet --compile --no-index --find-links wheels tracker

FROM python:3.13-slim
LABEL org.opencontainers.image.title="tracker" \
      org.opencontainers.image.description="The session tracker that fleets of AI agents run on" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tracker
COPY --from=build /opt/tracker /opt/tracker
ENV PATH=/opt/tracker/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 3013
STOPSIGNAL SIGTERM
# No proxy from the environment may stand between the check and the server.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", "\
import os, urllib.request as request; \
url = 'http://127.0.0.1:' + (os.environ.get('TRACKER_PORT') or '3013') + '/health'; \
request.build_opener(request.ProxyHandler({})).open(url, timeout=2)"]
ENTRYPOINT ["tracker"]
# Refuses to start without an API key: set TRACKER_API_KEYS or TRACKER_API_KEYS_FILE.
CMD ["serve", "--host", "0.0.0.0"]
