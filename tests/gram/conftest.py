def pytest_configure(config):
    config.addinivalue_line("markers", "architectures: models of transformers and timm; `make test-architectures`")
