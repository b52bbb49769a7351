"""stub"""
def verdict(n): return {}
